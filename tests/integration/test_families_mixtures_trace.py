"""Formulas of newer mixtures of experts and of latent attention against the trace.

Sizes are small and vocabularies tiny, so that peaks are the layers' and not the loss's.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from estimator import Case, estimate
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
ROUTED = {
    **SIZES,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
GROUPED = {**ROUTED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1}
LATENT = {
    **GROUPED,
    "num_key_value_heads": 8,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
}
INDEXED = {"index_topk": 64, "index_head_dim": 32, "index_n_heads": 4}
DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "shared_expert_intermediate_size": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
GEMMA4: dict[str, Any] = {
    "head_dim": 32,
    "global_head_dim": 64,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 128,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT},
    "deepseek_v3, plain queries": {
        "model_type": "deepseek_v3",
        **LATENT,
        "q_lora_rank": None,
        "rope_interleave": False,
    },
    "deepseek_v2": {"model_type": "deepseek_v2", **LATENT},
    "deepseek_v2, groups": {
        "model_type": "deepseek_v2",
        **LATENT,
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v32": {"model_type": "deepseek_v32", **LATENT, **INDEXED},
    "glm_moe_dsa": {
        "model_type": "glm_moe_dsa",
        **LATENT,
        **INDEXED,
        "num_hidden_layers": 4,
        "indexer_types": ["full", "full", "shared", "full"],
    },
    "youtu": {"model_type": "youtu", **LATENT},
    "axk1": {"model_type": "axk1", **LATENT},
    "minicpm3": {"model_type": "minicpm3", **LATENT},
    "dots1": {"model_type": "dots1", **GROUPED, "sliding_window": 128, "max_window_layers": 2},
    "exaone_moe": {
        "model_type": "exaone_moe",
        **ROUTED,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
    },
    "solar_open": {"model_type": "solar_open", **GROUPED, "head_dim": 32},
    "flex_olmo": {"model_type": "flex_olmo", **ROUTED},
    "minimax_m2": {
        "model_type": "minimax_m2",
        **ROUTED,
        "num_local_experts": 8,
        "head_dim": 32,
        "partial_rotary_factor": 0.5,
    },
    "afmoe": {
        "model_type": "afmoe",
        **ROUTED,
        "head_dim": 32,
        "num_shared_experts": 1,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 128,
        "mup_enabled": True,
    },
    "laguna": {
        "model_type": "laguna",
        **ROUTED,
        "head_dim": 32,
        "shared_expert_intermediate_size": 96,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 128,
        "num_attention_heads_per_layer": [8, 8, 4],
        "moe_router_logit_softcapping": 5.0,
    },
    "laguna, a gate a feature": {
        "model_type": "laguna",
        **ROUTED,
        "head_dim": 32,
        "gating": "per-element",
    },
    "hy_v3": {"model_type": "hy_v3", **ROUTED, "head_dim": 32},
    "cohere2_moe": {
        "model_type": "cohere2_moe",
        **ROUTED,
        "head_dim": 32,
        "num_shared_experts": 2,
        "first_k_dense_replace": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 128,
    },
    "cohere2_moe, sigmoids": {
        "model_type": "cohere2_moe",
        **ROUTED,
        "head_dim": 32,
        "expert_selection_fn": "sigmoid",
        "num_shared_experts": 1,
        "shared_expert_combination_strategy": "sum",
        "rms_norm_eps": 1e-5,
    },
    "gemma3n_text": {
        "model_type": "gemma3n_text",
        **SIZES,
        "head_dim": 32,
        "num_hidden_layers": 6,
        "intermediate_size": [512, 512, 256, 256, 512, 512],
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 128,
        "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": 400,
        "num_kv_shared_layers": 3,
        "laurel_rank": 32,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_unified_text": {
        "model_type": "gemma4_unified_text",
        **SIZES,
        **GEMMA4,
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "longcat_flash": {
        "model_type": "longcat_flash",
        **LATENT,
        "num_layers": 2,
        "head_dim": 16,
        "ffn_hidden_size": 512,
        "expert_ffn_hidden_size": 64,
        "n_routed_experts": 12,
        "zero_expert_num": 6,
        "moe_topk": 2,
    },
    "granitemoeshared": {
        "model_type": "granitemoeshared",
        **ROUTED,
        "num_local_experts": 8,
        "shared_intermediate_size": 256,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        **ROUTED,
        "num_local_experts": 8,
        "head_dim": 32,
        "sliding_window": 128,
    },
    "phimoe": {
        "model_type": "phimoe",
        **ROUTED,
        "num_local_experts": 8,
        "input_jitter_noise": 0.01,
        "lm_head_bias": True,
    },
    "llama4_text": {
        "model_type": "llama4_text",
        **ROUTED,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "head_dim": 32,
        "intermediate_size": 1024,
        "intermediate_size_mlp": 512,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 256,
    },
    "gemma4_text": {"model_type": "gemma4_text", **SIZES, **GEMMA4},
    "gemma4_text, experts": {
        "model_type": "gemma4_text",
        **ROUTED,
        **GEMMA4,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "gemma4_text, inputs by token": {
        "model_type": "gemma4_text",
        **SIZES,
        **GEMMA4,
        "attention_k_eq_v": False,
        "num_hidden_layers": 6,
        "layer_types": [*GEMMA4["layer_types"][1:], *["sliding_attention"] * 3, "full_attention"],
        "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": 400,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
    },
    "mimo_v2_flash": {
        "model_type": "mimo_v2_flash",
        **GROUPED,
        "head_dim": 48,
        "v_head_dim": 32,
        "sliding_window": 128,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        **ROUTED,
        "moe_num_experts": 8,
        "moe_k": 2,
    },
    "qwen3_next": {"model_type": "qwen3_next", **ROUTED, **DELTA},
    "qwen3_5_text": {"model_type": "qwen3_5_text", **SIZES, **DELTA},
    "qwen3_5_moe_text": {"model_type": "qwen3_5_moe_text", **ROUTED, **DELTA},
    "hunyuan_v1_moe": {
        "model_type": "hunyuan_v1_moe",
        **ROUTED,
        "intermediate_size": 128,
        "moe_topk": 2,
        "head_dim": 32,
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
    "QLoRA": {
        "task": "training",
        "method": "lora",
        "quantization": "nf4",
        "sequence_length": 200,
        "gradient_checkpointing": True,
    },
    "prefill": {"batch_size": 3, "sequence_length": 300, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
}


NO_ADAPTERS_ON_ROUTERS = ("phimoe", "llama4_text")
"""Routers that are linears of their own kind: peft fails on them."""
NO_QUANTIZATION = ("longcat_flash", "gemma3n_text")
"""Code that multiplies by a linear's weight itself (in training): it fails on a quantized one."""
LOOPED = ("longcat_flash",)
"""Experts that run one after the other, on which adapters have no formulas."""


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    for name, run in RUNS.items():
        fields = {"model": FAMILIES[family], **run}
        if family in NO_QUANTIZATION and "quantization" in run:
            continue
        if family in (*NO_ADAPTERS_ON_ROUTERS, *LOOPED) and run.get("method") == "lora":
            query = "q_b_proj" if family in LOOPED else "q_proj"
            fields["lora"] = {"target_modules": [query, "o_proj"]}
        case = Case.from_dict(fields)
        estimated = estimate(case)
        with warnings.catch_warnings():
            # peft says so of each rank pattern that no module matches.
            warnings.simplefilter("ignore")
            traced = trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.002
        ), name


@pytest.mark.parametrize("family", ["deepseek_v3", "minimax_m2", "exaone_moe", "qwen3_next"])
@pytest.mark.parametrize(
    "run",
    [
        {"batch_size": 2, "sequence_length": 64, "max_new_tokens": 3},
        {"task": "training", "sequence_length": 64, "gradient_checkpointing": True},
    ],
)
def test_factors_of_experts_adapters_are_cast_as_long_as_the_experts_run(
    family: str, run: dict[str, Any]
) -> None:
    # At this rank the factors are as large as the experts, and decide the peak.
    fields = {"model": FAMILIES[family], "method": "lora", "lora": {"r": 128}, **run}
    case = Case.from_dict(fields)
    estimated = estimate(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace_case(case)
    assert traced.peak.requested_bytes is not None
    assert estimated.peak.requested_bytes == pytest.approx(traced.peak.requested_bytes, rel=0.002)


def test_whole_chunks_of_the_delta_rule_need_more_than_padded_ones_in_fp32() -> None:
    # Nothing lays the states out head by head then, and each product copies its operand.
    fields = {"task": "training", "batch_size": 4, "dtype": "float32"}
    fields = {"model": FAMILIES["qwen3_5_text"], "optimizer": "sgd", **fields}
    whole, padded = (Case.from_dict({**fields, "sequence_length": n}) for n in (576, 577))
    for source in (estimate, trace_case):
        more, less = source(whole).peak.requested_bytes, source(padded).peak.requested_bytes
        assert more is not None
        assert less is not None
        assert more > less
