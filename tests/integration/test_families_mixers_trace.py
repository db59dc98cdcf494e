"""Formulas of models with recurrences and convolutions in attention's place against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from profiler.trace import trace_case

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"model_type": "lfm2", **SIZES, "full_attn_idxs": [1, 3], "conv_bias": True},
    "lfm2_moe": {
        "model_type": "lfm2_moe",
        **SIZES,
        "moe_intermediate_size": 256,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_dense_layers": 1,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "full": {"task": "training", "batch_size": 2, "sequence_length": 300},
    "full, checkpointing, eager": {
        "task": "training",
        "batch_size": 3,
        "sequence_length": 128,
        "gradient_checkpointing": True,
        "attention": "eager",
    },
    "LoRA, fp32": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "batch_size": 1,
        "sequence_length": 200,
    },
    "QLoRA, checkpointing": {
        "task": "training",
        "method": "lora",
        "quantization": "nf4",
        "batch_size": 2,
        "sequence_length": 256,
        "gradient_checkpointing": True,
    },
    "prefill": {"batch_size": 3, "sequence_length": 300, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
    "static": {"batch_size": 2, "sequence_length": 64, "max_new_tokens": 100, "cache": "static"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    for name, run in RUNS.items():
        case = Case.from_dict({"model": FAMILIES[family], **run})
        estimated, traced = estimate(case), trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.001
        ), name


@pytest.mark.parametrize("family", ["lfm2"])
@pytest.mark.parametrize("mixed_precision", ["bf16", "fp16"])
def test_autocast_is_the_traces(family: str, mixed_precision: str) -> None:
    run = {"task": "training", "dtype": "float32", "mixed_precision": mixed_precision}
    for extra in ({}, {"method": "lora"}):
        case = Case.from_dict(
            {"model": FAMILIES[family], "batch_size": 2, "sequence_length": 256, **run, **extra}
        )
        requested = trace_case(case).peak.requested_bytes
        assert requested is not None
        assert estimate(case).peak.requested_bytes == pytest.approx(requested, rel=0.001)
