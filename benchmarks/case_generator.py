"""Draws random cases over every axis that the architecture formulas support, from a seed.

The same seed gives the same cases on every machine. Models are those of the catalogue whose
type has formulas (whole, or a few of their layers), and configurations made up for the purpose:
odd widths, every split of heads, biases, windows, tied or not.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from estimator.case import Case
from estimator.catalogue import CatalogueEntry, entries
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec
from estimator.spec import ModelSpec, Moe

_MADE_UP = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_VOCABULARIES = (32_000, 32_001, 50_257, 100_277, 128_256, 151_936, 256_000)
_HEAD_SIZES = (32, 64, 64, 80, 96, 100, 128, 128, 128, 192, 256)
_ACTIVATIONS = ("silu", "silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new")
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CARDS = (None, None, None, "A100-80GB", "H100")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ranges that cases are drawn from; sizes are drawn evenly over their logarithms."""

    parameters: tuple[float, float] = (0.1e9, 70e9)
    """Of the catalogue's models."""
    made_up: tuple[float, float] = (0.1e9, 70e9)
    """Parameters of made-up models, without embeddings, about."""
    batch_size: tuple[int, int] = (1, 16)
    sequence_length: tuple[int, int] = (128, 16_384)
    max_new_tokens: tuple[int, int] = (1, 512)
    layers: int = 100
    catalogue_share: float = 0.6
    """How many of the models are the catalogue's, cut to `layers` where they have more."""


QUICK = Bounds(
    parameters=(0, 20e9),
    made_up=(0.5e6, 40e6),
    batch_size=(1, 8),
    sequence_length=(32, 4_096),
    max_new_tokens=(1, 64),
    layers=3,
    catalogue_share=0.4,
)
"""Bounds of models so shallow that a case is traced in a fraction of a second."""


def draw_cases(seed: int, count: int, bounds: Bounds | None = None) -> Iterator[Case]:
    """Yield `count` valid cases; each is drawn from its own stream of the seed."""
    for index in range(count):
        yield _draw(random.Random(f"{seed}/{index}"), bounds or Bounds())


def _draw(rng: random.Random, bounds: Bounds) -> Case:
    model = _model(rng, bounds)
    spec = parse_spec(load_config(model))
    longest = bounds.sequence_length[1]
    if spec.positions_bounded and spec.max_positions is not None:
        longest = min(longest, spec.max_positions)
    training = rng.random() < 0.65
    dtype = rng.choice(("bfloat16", "bfloat16", "float16", "float32"))
    attentions = ["sdpa", "sdpa", "eager"]
    if dtype != "float32":
        # flash-attn knows half precision only.
        attentions.append("flash_attention_2")
    # What a class does not know, transformers refuses; without sdpa it takes eager.
    attentions = [name for name in attentions if name == "sdpa" or name in spec.attentions]
    length = _between(rng, bounds.sequence_length[0], longest)
    fields: dict[str, Any] = {
        "model": model,
        "task": "training" if training else "inference",
        "dtype": dtype,
        "batch_size": _between(rng, *bounds.batch_size),
        # Round lengths are what people use, odd ones what they forget.
        "sequence_length": length if rng.random() < 0.5 else max(32, length // 64 * 64),
        "attention": rng.choice(attentions),
        "gpu": rng.choice(_CARDS),
    }
    adapters = rng.random() < (0.45 if training else 0.15)
    if adapters:
        fields["method"] = "lora"
        fields["lora"] = _lora(rng, spec)
    if training:
        fields |= _training(rng, dtype)
        fields["gradient_checkpointing"] &= spec.checkpointable
    else:
        fields["cache"] = rng.choice(("dynamic", "dynamic", "dynamic", "static"))
        if fields["attention"] == "flash_attention_2" or fields["cache"] not in spec.caches:
            fields["cache"] = "dynamic"
        fields["max_new_tokens"] = min(
            _between(rng, *bounds.max_new_tokens), max(1, longest - fields["sequence_length"])
        )
    if (adapters or not training) and rng.random() < 0.3:
        fields |= _quantization(rng, training, adapters and fields["lora"]["use_dora"])
    return Case.from_dict(fields)


def _training(rng: random.Random, dtype: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "optimizer": rng.choice(
            ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor", "adamw_bnb_8bit", "adagrad")
        ),
        "gradient_checkpointing": rng.random() < 0.5,
        "gradient_accumulation_steps": rng.choice((1, 1, 1, 2)),
        "keep_logits": rng.random() < 0.25,
    }
    if rng.random() < 0.3:
        fields["mixed_precision"] = "fp16" if dtype == "float16" else "bf16"
    if fields["optimizer"] == "sgd":
        fields["momentum"] = rng.choice((0.0, 0.9))
    return fields


def _quantization(rng: random.Random, training: bool, dora: bool) -> dict[str, Any]:
    kind = rng.choice(("int8", "nf4", "fp4"))
    fields: dict[str, Any] = {"quantization": kind}
    if kind != "int8":
        fields["double_quantization"] = rng.random() < 0.5
    if training:
        # DoRA under autocast has no formula without.
        fields["prepare_kbit"] = dora or rng.random() < 0.7
    return fields


def _lora(rng: random.Random, spec: ModelSpec) -> dict[str, Any]:
    names = sorted({linear.name for layer in spec.layers for linear in layer.linears})
    drawn = rng.sample(names, rng.randint(1, len(names)))
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Moe)]
    some = sorted({*drawn, *_other_halves(drawn, mixtures)})
    r = rng.choice((1, 4, 8, 16, 64, 256))
    dropout = rng.choice((0.0, 0.0, 0.05, 0.1))
    targets = rng.choice(("all-linear", tuple(some)))
    if any(mixture.router_name for mixture in mixtures):
        # peft fails on a router that is a linear of its own kind.
        targets = tuple(some)
    if any(mixture.adapted(targets) for mixture in mixtures):
        # peft allows none on the input of stacked experts.
        dropout = 0.0
    return {
        "r": r,
        "lora_dropout": dropout,
        "use_dora": rng.random() < 0.15 and not mixtures,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }


def _other_halves(drawn: list[str], mixtures: list[Moe]) -> Iterator[str]:
    """Yield what peft asks for beside the targets drawn: experts fuse their gates and ups."""
    for mixture in mixtures:
        fused = set(mixture.adapter_names[1:3])
        if fused & set(drawn):
            yield from fused


def _model(rng: random.Random, bounds: Bounds) -> str | dict[str, Any]:
    """Return what a case names as its model."""
    if rng.random() >= bounds.catalogue_share:
        return _config(rng, bounds)
    low, high = bounds.parameters
    known = [entry for entry in _with_formulas() if low <= entry.parameters <= high]
    # First the type, so that rare ones are drawn as often as Llama.
    model_type = rng.choice(sorted({entry.model_type for entry in known}))
    entry = rng.choice([entry for entry in known if entry.model_type == model_type])
    field = next((name for name in _LAYER_FIELDS if name in entry.config), None)
    if field is None or entry.config[field] <= bounds.layers:
        return entry.name
    config = {**entry.config, field: bounds.layers}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][: bounds.layers]
    return config


@cache
def _with_formulas() -> tuple[CatalogueEntry, ...]:
    known = []
    for entry in entries():
        # A known type may have settings without formulas.
        with contextlib.suppress(UnsupportedError):
            parse_spec(load_config(entry.name))
            known.append(entry)
    return tuple(known)


def _config(rng: random.Random, bounds: Bounds) -> dict[str, Any]:
    model_type = rng.choice(_MADE_UP)
    target = math.exp(rng.uniform(*map(math.log, bounds.made_up)))
    # Depth grows with the cube root of the size, as it does for published models.
    layers = max(2, min(bounds.layers, round(2 * (target / 1e6) ** (1 / 3))))
    head_size = rng.choice(_HEAD_SIZES)
    heads = max(1, round(math.sqrt(target / (12 * layers)) / head_size))
    hidden = heads * head_size
    vocab = rng.choice(_VOCABULARIES)
    if model_type == "gpt2":
        return {
            "model_type": model_type,
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": layers,
            "n_positions": rng.choice((1024, 2048)),
            "n_inner": rng.choice((None, round(hidden * rng.uniform(2, 5)))),
            "vocab_size": vocab,
            "activation_function": rng.choice(("gelu_new", *_ACTIVATIONS)),
            "tie_word_embeddings": rng.random() < 0.7,
            **{
                name: rng.choice((0.0, 0.1, 0.1))
                for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")
            },
        }
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": _width(rng, hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "vocab_size": vocab,
        "hidden_act": rng.choice(_ACTIVATIONS),
        "tie_word_embeddings": rng.random() < 0.4,
        "max_position_embeddings": 131_072,
        "attention_dropout": rng.choice((0.0, 0.0, 0.0, 0.1)),
    }
    # Llama's own code asserts that head_dim is hidden_size over heads only where it is absent.
    config["head_dim"] = head_size if rng.random() < 0.7 else rng.choice(_HEAD_SIZES)
    if model_type in ("llama", "qwen3", "gemma"):
        config["attention_bias"] = rng.random() < 0.25
    if model_type == "llama":
        config["mlp_bias"] = rng.random() < 0.25
    if model_type == "mistral":
        config["sliding_window"] = rng.choice((None, None, 256, 1024, 4096))
    if model_type in ("qwen2", "qwen3") and rng.random() < 0.4:
        config |= {
            "use_sliding_window": True,
            "sliding_window": rng.choice((256, 1024, 4096)),
            "max_window_layers": rng.randint(0, layers),
        }
    if model_type == "qwen2":
        # Qwen2Config has no head_dim of its own.
        del config["head_dim"]
    return config


def _width(rng: random.Random, hidden: int) -> int:
    width = round(hidden * rng.uniform(1.5, 6))
    return width if rng.random() < 0.3 else max(64, width // 64 * 64)


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
