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
MAMBA = {"hidden_size": 128, "num_hidden_layers": 3, "vocab_size": 500}
HYBRID = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
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
    "mamba": {"model_type": "mamba", **MAMBA, "state_size": 8},
    "falcon_mamba": {"model_type": "falcon_mamba", **MAMBA, "state_size": 8},
    "mamba2": {
        "model_type": "mamba2",
        **MAMBA,
        "state_size": 16,
        "num_heads": 8,
        "head_dim": 32,
        "n_groups": 2,
        "chunk_size": 32,
    },
    "bamba": {"model_type": "bamba", **HYBRID, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        "model_type": "granitemoehybrid",
        **HYBRID,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "shared_intermediate_size": 256,
    },
    "granitemoehybrid, attention only": {
        "model_type": "granitemoehybrid",
        **HYBRID,
        "layer_types": ["attention"] * 3,
        "num_local_experts": 0,
        "shared_intermediate_size": 256,
        "position_embedding_type": "rope",
    },
    "jamba": {
        "model_type": "jamba",
        **HYBRID,
        "mamba_d_state": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
    },
    "nemotron_h": {
        "model_type": "nemotron_h",
        **HYBRID,
        "hybrid_override_pattern": "M-*E",
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 32,
        "head_dim": 16,
        "moe_intermediate_size": 96,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 128,
    },
}
TARGETS = {name: ["in_proj"] for name in ("mamba", "falcon_mamba", "mamba2", "nemotron_h")}
"""What adapters sit on where peft refuses all linears."""
RUNS: dict[str, dict[str, Any]] = {
    "full": {"task": "training", "batch_size": 2, "sequence_length": 90},
    "full, checkpointing, eager": {
        "task": "training",
        "batch_size": 3,
        "sequence_length": 64,
        "gradient_checkpointing": True,
        "attention": "eager",
    },
    "LoRA, fp32": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "batch_size": 1,
        "sequence_length": 70,
    },
    "QLoRA, checkpointing": {
        "task": "training",
        "method": "lora",
        "quantization": "nf4",
        "batch_size": 2,
        "sequence_length": 50,
        "gradient_checkpointing": True,
    },
    "prefill": {"batch_size": 3, "sequence_length": 90, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
    "static": {"batch_size": 2, "sequence_length": 64, "max_new_tokens": 100, "cache": "static"},
}


def case_of(family: str, run: dict[str, Any]) -> Case:
    fields = {"model": FAMILIES[family], **run}
    if fields.get("method") == "lora" and family in TARGETS:
        fields["lora"] = {"target_modules": TARGETS[family]}
    return Case.from_dict(fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    for name, run in RUNS.items():
        if run.get("quantization") and family == "mamba":
            continue
        case = case_of(family, run)
        estimated, traced = estimate(case), trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.001
        ), name


@pytest.mark.parametrize("family", ["lfm2", "mamba", "mamba2", "jamba"])
@pytest.mark.parametrize("mixed_precision", ["bf16", "fp16"])
def test_autocast_is_the_traces(family: str, mixed_precision: str) -> None:
    run = {"task": "training", "dtype": "float32", "mixed_precision": mixed_precision}
    for extra in ({}, {"method": "lora"}):
        case = case_of(family, {"batch_size": 2, "sequence_length": 64, **run, **extra})
        requested = trace_case(case).peak.requested_bytes
        assert requested is not None
        assert estimate(case).peak.requested_bytes == pytest.approx(requested, rel=0.001)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_bambas_loop_names_probabilities_until_the_next_layer_returns(cache: str) -> None:
    # Chunks so large that the layer after the attention is where the peak is.
    model = {"model_type": "bamba", **HYBRID, "attn_layer_indices": [1], "mamba_chunk_size": 256}
    fields = {"attention": "eager", "cache": cache, "sequence_length": 700, "max_new_tokens": 3}
    case = Case.from_dict({"model": model, "batch_size": 2, **fields})
    asked, traced = (report.peak.requested_bytes for report in (estimate(case), trace_case(case)))
    assert asked == pytest.approx(traced, rel=1e-4)
