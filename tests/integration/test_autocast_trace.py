"""Autocast over weights of every type: the formulas against the trace, family by family.

Sizes are small and vocabularies tiny, so that peaks are the layers' and not the loss's.
"""

from __future__ import annotations

from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.trace import trace_case

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 256, "n_head": 8, "n_layer": 3, "vocab_size": 500, "n_positions": 1024}
ROUTED = {**SIZES, "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    **ROUTED,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
}
LLAMA = {"model_type": "llama", **SIZES}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma3": {"model_type": "gemma3_text", **SIZES, "head_dim": 64, "sliding_window": 128},
    "gpt2": {"model_type": "gpt2", **GPT},
    "gptj": {"model_type": "gptj", **GPT, "rotary_dim": 16},
    "stablelm": {"model_type": "stablelm", **SIZES},
    "nemotron": {"model_type": "nemotron", **SIZES},
    "bert": {"model_type": "bert", **SIZES},
    "bloom": {"model_type": "bloom", "hidden_size": 256, "n_head": 8, "n_layer": 3},
    "falcon": {"model_type": "falcon", **SIZES, "alibi": True, "multi_query": False},
    "xglm": {
        "model_type": "xglm",
        "d_model": 256,
        "attention_heads": 8,
        "num_layers": 3,
        "vocab_size": 500,
        "ffn_dim": 512,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **ROUTED},
    "gpt_oss": {"model_type": "gpt_oss", **ROUTED, "num_local_experts": 8, "head_dim": 32},
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT},
    "llama4_text": {
        "model_type": "llama4_text",
        **ROUTED,
        "num_local_experts": 4,
        "head_dim": 32,
        "intermediate_size_mlp": 512,
    },
}
PREFILL = {"batch_size": 3, "sequence_length": 300, "max_new_tokens": 3}
RUNS: dict[str, dict[str, Any]] = {
    "prefill of fp32": {**PREFILL, "dtype": "float32"},
    "prefill of bf16": {**PREFILL, "dtype": "bfloat16"},
    "decode of fp32": {
        "batch_size": 4,
        "sequence_length": 8,
        "max_new_tokens": 200,
        "dtype": "float32",
    },
    "training of fp32": {
        "task": "training",
        "batch_size": 2,
        "sequence_length": 300,
        "dtype": "float32",
    },
}


OTHER_HALF_RUNS: dict[str, dict[str, Any]] = {
    "prefill": {**PREFILL, "dtype": "float16", "mixed_precision": "bf16"},
    "prefill, eager": {**PREFILL, "mixed_precision": "fp16", "attention": "eager"},
    "training": {
        "task": "training",
        "batch_size": 2,
        "sequence_length": 300,
        "dtype": "float16",
        "mixed_precision": "bf16",
    },
    "checkpointed training, eager": {
        "task": "training",
        "batch_size": 2,
        "sequence_length": 300,
        "dtype": "float16",
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "attention": "eager",
    },
}
"""Weights in one half type under autocast to the other."""


def agree(case: Case, told: str = "") -> None:
    estimated, traced = estimate(case), trace_case(case)
    assert estimated.parameters == traced.parameters, told
    assert traced.peak.requested_bytes is not None
    assert estimated.peak.requested_bytes == pytest.approx(traced.peak.requested_bytes, rel=5e-4), (
        told
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_asks_for_what_the_trace_asks_for(family: str) -> None:
    for name, run in RUNS.items():
        fields = {"model": FAMILIES[family], **run, "mixed_precision": "bf16"}
        agree(Case.from_dict(fields), name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_under_autocast_to_the_other_half_type(family: str) -> None:
    for name, run in OTHER_HALF_RUNS.items():
        agree(Case.from_dict({"model": FAMILIES[family], **run}), name)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "eager"},
        {"attention": "eager", "dtype": "float16", "mixed_precision": "fp16"},
        {"attention": "flash_attention_2"},
        {"cache": "static", "dtype": "bfloat16"},
        {"method": "lora"},
        {"quantization": "nf4"},
        {"quantization": "int8", "dtype": "float16", "mixed_precision": "fp16"},
    ],
    ids=["eager", "fp16", "flash", "static", "lora", "nf4", "int8"],
)
def test_inference(fields: dict[str, Any]) -> None:
    base = {"model": LLAMA, "dtype": "float32", "mixed_precision": "bf16", **PREFILL}
    agree(Case.from_dict({**base, **fields}))


def test_the_casts_of_frozen_weights_are_not_remembered() -> None:
    base = {"model": LLAMA, "dtype": "float32", "mixed_precision": "bf16", **PREFILL}
    tiny = {"method": "lora", "lora": {"r": 1, "target_modules": ["q_proj"]}}
    full, adapted = (estimate(Case.from_dict({**base, **extra})) for extra in ({}, tiny))
    # Two layers' linears at least: the last one's are cast while others are there, too.
    layer = 2 * (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512)
    assert full.peak.allocated_bytes - adapted.peak.allocated_bytes > 2 * layer


@pytest.mark.parametrize("source", [estimate, trace_case], ids=["formulas", "trace"])
def test_a_static_cache_of_rotated_keys_is_refused(source: Any) -> None:
    case = {"model": LLAMA, "dtype": "float32", "mixed_precision": "bf16", "cache": "static"}
    with pytest.raises(UnsupportedError, match="use cache dynamic"):
        source(Case.from_dict({**case, "sequence_length": 32}))


def test_a_paged_cache_is_refused() -> None:
    case = {"model": LLAMA, "mixed_precision": "bf16", "cache": "paged"}
    with pytest.raises(UnsupportedError, match="know no autocast"):
        estimate(Case.from_dict(case))
