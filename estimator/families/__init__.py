"""One module a family of models: how its config.json becomes a `ModelSpec`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from estimator.config_source import ModelConfig
from estimator.errors import UnsupportedError
from estimator.families import (
    bart,
    bert,
    bloom_mpt,
    deepseek,
    deepseek_sparse,
    falcon,
    falcon_h1,
    gemma,
    gemma3n,
    gemma4,
    glm_cohere,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    lfm2,
    llama,
    llama4,
    llama_norms,
    llama_variants,
    longcat,
    mamba,
    mamba_hybrids,
    mimo,
    modernbert,
    moe,
    moe_gated,
    moe_shared,
    moe_variants,
    olmo,
    opt,
    phi,
    qwen_next,
    recurrent_gemma,
    xglm_ctrl,
    zamba,
)
from estimator.families.reader import ConfigReader
from estimator.spec import ModelSpec
from estimator.units import format_gib

PARSERS: dict[str, Callable[[ConfigReader], ModelSpec]] = {
    "llama": llama.parse,
    "mistral": llama.parse_mistral,
    "qwen2": llama.parse_qwen2,
    "qwen3": llama.parse_qwen3,
    "gemma": gemma.parse,
    "gemma2": gemma.parse_gemma2,
    "gemma3_text": gemma.parse_gemma3,
    "gemma3n_text": gemma3n.parse,
    "gemma4_text": gemma4.parse,
    "gemma4_unified_text": gemma4.parse_unified,
    "vaultgemma": gemma.parse_vaultgemma,
    "arcee": llama_variants.parse_arcee,
    "smollm3": llama_variants.parse_smollm3,
    "seed_oss": llama_variants.parse_seed_oss,
    "ministral": llama_variants.parse_ministral,
    "ministral3": llama_variants.parse_ministral3,
    "apertus": llama_variants.parse_apertus,
    "granite": llama_variants.parse_granite,
    "ernie4_5": llama_variants.parse_ernie4_5,
    "hunyuan_v1_dense": llama_variants.parse_hunyuan,
    "helium": llama_variants.parse_helium,
    "cwm": llama_variants.parse_cwm,
    "exaone4": llama_variants.parse_exaone4,
    "jais2": llama_norms.parse_jais2,
    "hyperclovax": llama_norms.parse_hyperclovax,
    "bitnet": llama_norms.parse_bitnet,
    "nanochat": llama_norms.parse_nanochat,
    "olmo": olmo.parse,
    "olmo2": olmo.parse_olmo2,
    "olmo3": olmo.parse_olmo3,
    "phi": phi.parse,
    "phi3": phi.parse_phi3,
    "persimmon": phi.parse_persimmon,
    "stablelm": phi.parse_stablelm,
    "nemotron": phi.parse_nemotron,
    "starcoder2": phi.parse_starcoder2,
    "glm": glm_cohere.parse_glm,
    "glm4": glm_cohere.parse_glm4,
    "cohere": glm_cohere.parse_cohere,
    "cohere2": glm_cohere.parse_cohere2,
    "gpt2": gpt2.parse,
    "gpt-sw3": gpt2.parse,
    "gpt_bigcode": gpt2.parse_bigcode,
    "gpt_neox": gpt_neox.parse,
    "bart": bart.parse,
    "mbart": bart.parse,
    "plbart": bart.parse,
    "blenderbot": bart.parse,
    "blenderbot-small": bart.parse,
    "pegasus": bart.parse,
    "marian": bart.parse,
    "bert": bert.parse,
    "ernie": bert.parse,
    "electra": bert.parse_electra,
    "megatron-bert": bert.parse_megatron,
    "rembert": bert.parse_rembert,
    "bert-generation": bert.parse_generation,
    "roberta": bert.parse_roberta,
    "xlm-roberta": bert.parse_roberta,
    "camembert": bert.parse_roberta,
    "data2vec-text": bert.parse_roberta,
    "roberta-prelayernorm": bert.parse_prelayernorm,
    "xlm-roberta-xl": bert.parse_xlm_roberta_xl,
    "modernbert-decoder": modernbert.parse,
    "xglm": xglm_ctrl.parse_xglm,
    "ctrl": xglm_ctrl.parse_ctrl,
    "bloom": bloom_mpt.parse_bloom,
    "falcon": falcon.parse,
    "mpt": bloom_mpt.parse_mpt,
    "gptj": gptj.parse,
    "codegen": gptj.parse_codegen,
    "gpt_neo": gptj.parse_gpt_neo,
    "mixtral": moe.parse_mixtral,
    "qwen2_moe": moe.parse_qwen2_moe,
    "qwen3_moe": moe.parse_qwen3_moe,
    "olmoe": moe.parse_olmoe,
    "granitemoe": moe.parse_granitemoe,
    "glm4_moe": moe_shared.parse_glm4_moe,
    "deepseek_v2": deepseek.parse_deepseek_v2,
    "deepseek_v3": deepseek.parse_deepseek_v3,
    "deepseek_v32": deepseek_sparse.parse_deepseek_v32,
    "glm_moe_dsa": deepseek_sparse.parse_glm_moe_dsa,
    "glm4_moe_lite": deepseek.parse_glm4_moe_lite,
    "gpt_oss": gpt_oss.parse,
    "phimoe": moe_variants.parse_phimoe,
    "llama4_text": llama4.parse,
    "ernie4_5_moe": moe_variants.parse_ernie4_5_moe,
    "hunyuan_v1_moe": moe_variants.parse_hunyuan_v1_moe,
    "qwen3_next": qwen_next.parse_qwen3_next,
    "qwen3_5_text": qwen_next.parse_qwen3_5,
    "qwen3_5_moe_text": qwen_next.parse_qwen3_5_moe,
    "axk1": deepseek.parse_axk1,
    "minicpm3": deepseek.parse_minicpm3,
    "youtu": deepseek.parse_youtu,
    "solar_open": moe_shared.parse_solar_open,
    "dots1": moe_shared.parse_dots1,
    "exaone_moe": moe_shared.parse_exaone_moe,
    "mellum": moe_variants.parse_mellum,
    "flex_olmo": moe_variants.parse_flex_olmo,
    "mimo_v2_flash": mimo.parse,
    "afmoe": moe_gated.parse_afmoe,
    "cohere2_moe": moe_gated.parse_cohere2_moe,
    "longcat_flash": longcat.parse,
    "laguna": moe_gated.parse_laguna,
    "hy_v3": moe_gated.parse_hy_v3,
    "minimax_m2": moe_variants.parse_minimax_m2,
    "granitemoeshared": moe_variants.parse_granitemoeshared,
    "mamba": mamba.parse,
    "falcon_mamba": mamba.parse,
    "bamba": mamba_hybrids.parse_bamba,
    "granitemoehybrid": mamba_hybrids.parse_granitemoehybrid,
    "falcon_h1": falcon_h1.parse,
    "recurrent_gemma": recurrent_gemma.parse,
    "zamba": zamba.parse,
    "zamba2": zamba.parse_zamba2,
    "jamba": mamba_hybrids.parse_jamba,
    "nemotron_h": mamba_hybrids.parse_nemotron_h,
    "mamba2": mamba.parse_mamba2,
    "lfm2": lfm2.parse_lfm2,
    "lfm2_moe": lfm2.parse_lfm2_moe,
    "opt": opt.parse_opt,
    "biogpt": opt.parse_biogpt,
}
"""Parser by `model_type`."""


def parse_spec(config: ModelConfig) -> ModelSpec:
    """Translate a configuration into a spec.

    Raises:
        UnsupportedError: the type's memory has no formulas; the message names the way out, and
            what the parameters alone take, where they can be counted.
        ModelError: a field is missing, or its value is impossible.
    """
    model_type = config.config.get("model_type")
    parser = PARSERS.get(model_type) if isinstance(model_type, str) else None
    if parser is None:
        count = count_parameters(config)
        if count is not None:
            shown = f"{count:,}".replace(",", " ")
            raise UnsupportedError(
                f"the architecture formulas count the parameters of {config.name}, {shown} "
                f"({format_gib(2 * count)} in bfloat16), but do not know the memory of its model "
                f"type {model_type!r}: use gpumem trace, which runs transformers' own code, or "
                f"--formulas article{_held(config)}"
            )
        raise UnsupportedError(
            f"the architecture formulas do not know the model type {model_type!r} of "
            f"{config.name}: use gpumem trace, which runs transformers' own code, "
            f"or --formulas article{_held(config)}"
        )
    return _remembered(config.name, json.dumps(config.config))


def _held(config: ModelConfig) -> str:
    return "" if config.checkpoint is None else f" ({config.checkpoint.sentence})"


def count_parameters(config: ModelConfig) -> int | None:
    """Return the number of parameters, tied ones once; None where the type is not known.

    It knows more types than `parse_spec`: those of `COUNTERS` in parameters_only.py, too.

    Raises:
        UnsupportedError: a setting of a known type without a formula.
        ModelError: a field is missing, or its value is impossible.
    """
    model_type = config.config.get("model_type")
    if not isinstance(model_type, str):
        return None
    if model_type in PARSERS:
        return parse_spec(config).parameters
    # Types with formulas, most by far, do not wait for the others' modules.
    from estimator.families.parameters_only import COUNTERS

    counter = COUNTERS.get(model_type)
    return None if counter is None else counter(ConfigReader(config))


@lru_cache(maxsize=64)
def _remembered(name: str, text: str) -> ModelSpec:
    """A model is asked about again and again; its spec depends on its configuration alone."""
    config = ModelConfig(name, json.loads(text), "object")
    return PARSERS[config.model_type](ConfigReader(config))
