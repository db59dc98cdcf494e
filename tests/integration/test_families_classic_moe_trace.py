"""Formulas of older dense families and of mixtures of experts against the trace.

Sizes are small and vocabularies tiny, so that peaks are the layers' and not the loss's.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from estimator import Case, estimate
from profiler.trace import trace_case

GPT = {"n_embd": 256, "n_head": 8, "n_layer": 3, "vocab_size": 500, "n_positions": 1024}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 500,
}
NEOX = {"model_type": "gpt_neox", **SIZES, "max_position_embeddings": 2048}
OPT = {**SIZES, "ffn_dim": 1024, "word_embed_proj_dim": 256}
ROUTED = {
    **SIZES,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": NEOX,
    "gpt_neox, one after the other": {
        **NEOX,
        "use_parallel_residual": False,
        "rotary_pct": 1.0,
        "hidden_act": "gelu_fast",
        "hidden_dropout": 0.1,
    },
    "opt": {"model_type": "opt", **OPT},
    "biogpt": {"model_type": "biogpt", **SIZES},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT},
    "gpt_bigcode, all heads": {"model_type": "gpt_bigcode", "multi_query": False, **GPT},
    "mixtral": {"model_type": "mixtral", **ROUTED, "num_local_experts": 8},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **ROUTED,
        "shared_expert_intermediate_size": 256,
        "decoder_sparse_step": 2,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **ROUTED,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
    "olmoe": {"model_type": "olmoe", **ROUTED},
    "granitemoe": {
        "model_type": "granitemoe",
        **ROUTED,
        "num_local_experts": 8,
        "residual_multiplier": 0.2,
    },
    "glm4_moe": {
        "model_type": "glm4_moe",
        **ROUTED,
        "head_dim": 32,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "use_qk_norm": True,
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
    "LoRA": {"task": "training", "method": "lora", "batch_size": 2, "sequence_length": 256},
    "LoRA, checkpointing, fp32": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "batch_size": 1,
        "sequence_length": 200,
        "gradient_checkpointing": True,
    },
    "prefill": {"batch_size": 3, "sequence_length": 300, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    for name, run in RUNS.items():
        case = Case.from_dict({"model": FAMILIES[family], **run})
        estimated = estimate(case)
        with warnings.catch_warnings():
            # peft says so of each rank pattern that no module matches.
            warnings.simplefilter("ignore")
            traced = trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.005
        ), name
