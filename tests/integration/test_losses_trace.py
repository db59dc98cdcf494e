"""Formulas of the fused losses against the trace, which plays Liger's and TRL's own code.

Vocabularies are large beside small models, so that peaks are the loss's.
"""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.losses import LIGER_TYPES
from profiler.trace import trace_case

SCALARS = 128
"""Bytes of the numbers (counts, sums, norms) that the formulas leave out."""

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 40_000,
    "max_position_embeddings": 16_384,
}
LLAMA = {"model_type": "llama", "tie_word_embeddings": False, **SIZES}
TIED = {"model": {**LLAMA, "tie_word_embeddings": True}}
HALF_AMP = {"dtype": "float32", "mixed_precision": "bf16"}
QLORA = {"method": "lora", "quantization": "nf4"}
CHECKPOINTED = {"gradient_checkpointing": True}
LONG = {"batch_size": 3, "sequence_length": 3001, **CHECKPOINTED}

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointed": CHECKPOINTED,
    "fp16": {"dtype": "float16"},
    "fp32": {"dtype": "float32"},
    "fp32, long": {"dtype": "float32", **LONG},
    "long": LONG,
    "one sequence of 33": {"batch_size": 1, "sequence_length": 33},
    "eager": {"attention": "eager"},
    "autocast over fp32": HALF_AMP,
    "autocast over fp32, long": {**HALF_AMP, **LONG},
    "autocast over fp32, accumulated": {**HALF_AMP, "gradient_accumulation_steps": 2},
    "autocast over bf16": {"mixed_precision": "bf16", **CHECKPOINTED},
    "accumulated": {"gradient_accumulation_steps": 2},
    "tied": TIED,
    "tied, fp32": {"dtype": "float32", **TIED},
    "tied, accumulated": {"gradient_accumulation_steps": 2, **TIED},
    "tied, autocast over fp32": {**HALF_AMP, **TIED, **CHECKPOINTED},
    "lora": {"method": "lora"},
    "lora, checkpointed": {"method": "lora", **CHECKPOINTED},
    "lora, fp32, long": {"method": "lora", "dtype": "float32", **LONG},
    "qlora": QLORA,
    "qlora, checkpointed": {**QLORA, **CHECKPOINTED},
    "qlora, not prepared": {**QLORA, "prepare_kbit": False},
    "qlora, autocast": {**QLORA, "mixed_precision": "bf16", **CHECKPOINTED},
    "T4": {"dtype": "float16", "gpu": "T4", **CHECKPOINTED},
    "T4, autocast": {"dtype": "float32", "mixed_precision": "fp16", "gpu": "T4", **CHECKPOINTED},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2, logits capped": {"model_type": "gemma2", "head_dim": 32, "sliding_window": 64},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 64},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": {"model_type": "olmo2"},
    "gpt_oss, eight chunks in one": {"model_type": "gpt_oss", "num_local_experts": 4},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "cohere, logits scaled": {"model_type": "cohere"},
    "granite, logits divided": {"model_type": "granite"},
    "phi, a head with a bias": {"model_type": "phi"},
    "minicpm3, the head's input scaled": {
        "model_type": "minicpm3",
        "num_key_value_heads": 8,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
}


def training(model: dict[str, Any], loss: str, **fields: Any) -> Case:
    base = {"task": "training", "batch_size": 2, "sequence_length": 200, "loss": loss}
    return Case.from_dict({"model": model, **base, **fields})


def check(case: Case) -> None:
    """The same peak, to the byte but for single numbers, in the same phase."""
    formulas, trace = estimate(case), trace_case(case)
    difference = formulas.peak.requested_bytes - trace.peak.requested_bytes
    assert abs(difference) <= SCALARS, f"{difference} of {trace.peak.requested_bytes}"
    assert formulas.parameters == trace.parameters


@pytest.mark.parametrize("loss", ["liger", "chunked"])
@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
def test_every_way_to_train(loss: str, fields: dict[str, Any]) -> None:
    check(training(**{"model": LLAMA, "loss": loss, **fields}))


@pytest.mark.parametrize("loss", ["liger", "chunked"])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_families(loss: str, config: dict[str, Any]) -> None:
    if loss == "liger" and config["model_type"] not in LIGER_TYPES:
        pytest.skip("Liger does not know the type")
    check(training({**SIZES, **config}, loss, gradient_checkpointing=True))


@pytest.mark.parametrize("loss", ["liger", "chunked"])
def test_the_trace_tells_logits_from_the_rest(loss: str) -> None:
    case = training(LLAMA, loss, **HALF_AMP)
    formulas, trace = estimate(case), trace_case(case)
    logits = trace.components.logits_bytes
    assert 0 < logits == pytest.approx(formulas.components.logits_bytes, rel=0.05)


def test_old_cards_make_the_weights_gradient_out_of_place() -> None:
    new, old = (
        trace_case(training(LLAMA, "liger", gpu=gpu)).peak.requested_bytes for gpu in (None, "T4")
    )
    # The product in half precision, and that in fp32.
    assert old - new > 2 * 40_000 * 256
