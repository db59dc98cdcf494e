"""One module a family of models: how its config.json becomes a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable

from estimator.config_source import ModelConfig
from estimator.errors import UnsupportedError
from estimator.families import gemma, gpt2, gpt_neox, llama, opt
from estimator.families.reader import ConfigReader
from estimator.spec import ModelSpec

PARSERS: dict[str, Callable[[ConfigReader], ModelSpec]] = {
    "llama": llama.parse,
    "mistral": llama.parse_mistral,
    "qwen2": llama.parse_qwen2,
    "qwen3": llama.parse_qwen3,
    "gemma": gemma.parse,
    "gpt2": gpt2.parse,
    "gpt_bigcode": gpt2.parse_bigcode,
    "gpt_neox": gpt_neox.parse,
    "opt": opt.parse_opt,
    "biogpt": opt.parse_biogpt,
}
"""Parser by `model_type`."""


def parse_spec(config: ModelConfig) -> ModelSpec:
    """Translate a configuration into a spec.

    Raises:
        UnsupportedError: the type is not known; the message names the way out.
        ModelError: a field is missing, or its value is impossible.
    """
    model_type = config.config.get("model_type")
    parser = PARSERS.get(model_type) if isinstance(model_type, str) else None
    if parser is None:
        raise UnsupportedError(
            f"the architecture formulas do not know the model type {model_type!r} of "
            f"{config.name}: use gpumem trace, which runs transformers' own code, "
            "or --formulas article"
        )
    return parser(ConfigReader(config))
