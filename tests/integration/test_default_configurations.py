"""Parameter counts of every known type's default configuration, as transformers builds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.causal_types import causal_types, default_configuration
from estimator.case import Case
from estimator.config_source import load_config
from estimator.families import PARSERS, count_parameters, parse_spec
from estimator.families.parameters_only import COUNTERS
from profiler import tensors
from profiler.build import build_model

KNOWN = sorted(set(PARSERS) & set(causal_types()))
LEFT_OUT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""Sizes without which a default configuration neither runs nor (most of them) builds."""


def test_the_known_types_are_transformers_own() -> None:
    assert set(KNOWN) == set(PARSERS)


@pytest.mark.parametrize("model_type", KNOWN)
def test_parameters_are_those_of_the_default_model(model_type: str) -> None:
    config = {**default_configuration(model_type), **LEFT_OUT.get(model_type, {})}
    # Infinity is no JSON; nothing that is counted depends on it.
    config.pop("time_step_limit", None)
    built = build_model(Case.from_dict({"model": config}), "meta")
    assert parse_spec(load_config(config)).parameters == tensors.count_parameters(built).total


VARIED: dict[str, list[dict[str, Any]]] = {
    "mamba": [
        {"hidden_size": 96, "num_hidden_layers": 3, "use_bias": True, "use_conv_bias": False},
        {"expand": 3, "state_size": 8, "time_step_rank": 7, "tie_word_embeddings": False},
    ],
    "falcon_mamba": [
        {"hidden_size": 200, "num_hidden_layers": 2, "conv_kernel": 3},
        {"hidden_size": 64, "expand": 16, "intermediate_size": 128},
    ],
    "mamba2": [
        {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "n_groups": 2, "use_bias": True},
        {"num_hidden_layers": 3, "use_conv_bias": False, "tie_word_embeddings": True},
    ],
    "jamba": [
        {"num_hidden_layers": 10, "num_experts": 1, "num_experts_per_tok": 1},
        {"num_hidden_layers": 9, "attn_layer_period": 4, "attn_layer_offset": 1},
        {"num_hidden_layers": 5, "expert_layer_period": 3, "mamba_proj_bias": True},
        {"num_hidden_layers": 3, "mamba_dt_rank": 100, "mamba_conv_bias": False},
    ],
    "bamba": [
        {"num_hidden_layers": 6, "attn_layer_indices": [1, 4], "attention_bias": True},
        {"num_hidden_layers": 2, "mlp_bias": True, "mamba_proj_bias": True, "mamba_n_groups": 2},
    ],
    "falcon_h1": [
        {"num_hidden_layers": 2, "mamba_d_ssm": None, "mamba_rms_norm": True},
        {"num_hidden_layers": 2, "projectors_bias": True, "mamba_proj_bias": True},
        {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True},
    ],
    "granitemoehybrid": [
        {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
        {"num_hidden_layers": 2, "num_local_experts": 0, "tie_word_embeddings": True},
        {"num_hidden_layers": 2, "layer_types": ["attention"] * 2, "attention_bias": True},
    ],
    "nemotron_h": [
        {"hybrid_override_pattern": "M-M*E-", "mlp_bias": True},
        {"layers_block_type": ["mamba", "moe", "attention"], "moe_latent_size": 1024},
        {"layers_block_type": ["linear_attention", "mlp"], "use_bias": True, "n_groups": 4},
    ],
    "zamba": [
        {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]},
        {"num_hidden_layers": 12, "hidden_size": 128, "mamba_proj_bias": True},
        {"num_hidden_layers": 3, "layers_block_type": ["mamba"] * 3},
    ],
    "zamba2": [
        {"num_mem_blocks": 2, "use_shared_attention_adapter": True},
        {"add_bias_linear": True, "adapter_rank": 8, "hidden_size": 512},
        {"layers_block_type": ["mamba", "hybrid", "mamba"], "num_hidden_layers": 3},
    ],
    "rwkv": [
        {"num_hidden_layers": 2, "attention_hidden_size": 512, "tie_word_embeddings": True},
        {"num_hidden_layers": 3, "hidden_size": 96, "intermediate_size": 100},
    ],
    "recurrent_gemma": [
        {"num_hidden_layers": 4, "num_key_value_heads": 1, "attention_bias": True},
        {"num_hidden_layers": 5, "lru_width": 1280, "block_types": ["recurrent", "attention"]},
    ],
    "xlstm": [
        {"num_hidden_layers": 2, "use_bias": True, "hidden_size": 320},
        {"num_hidden_layers": 2, "weight_mode": "fused", "qk_dim_factor": 0.3, "num_heads": 4},
    ],
    "lfm2": [
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]},
        {"num_hidden_layers": 4, "full_attn_idxs": [1], "conv_bias": True, "conv_L_cache": 4},
        {"num_hidden_layers": 2, "block_auto_adjust_ff_dim": False, "tie_embedding": False},
        {"num_hidden_layers": 2, "block_ff_dim": 7000, "block_ffn_dim_multiplier": 1.3},
    ],
    "lfm2_moe": [
        {"layer_types": ["conv", "full_attention"] * 16},
        {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
        {
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "num_dense_layers": 1,
            "conv_bias": True,
        },
    ],
    "openai-gpt": [{"n_embd": 96, "n_layer": 2, "n_positions": 40, "tie_word_embeddings": False}],
    "gpt_neox_japanese": [
        {"num_hidden_layers": 3, "intermediate_multiple_size": 3, "tie_word_embeddings": False}
    ],
    "megatron-bert": [{"num_hidden_layers": 2, "hidden_size": 64}],
    "xlm-roberta-xl": [{"num_hidden_layers": 2, "type_vocab_size": 3, "vocab_size": 100}],
    "roberta-prelayernorm": [
        {"hidden_size": 96, "max_position_embeddings": 30},
        {"num_hidden_layers": 1, "type_vocab_size": 3},
    ],
    "electra": [
        {"embedding_size": 256, "num_hidden_layers": 2},
        {"embedding_size": 32, "tie_word_embeddings": False},
    ],
    "rembert": [
        {"output_embedding_size": 100, "num_hidden_layers": 2},
        {"input_embedding_size": 1152, "num_hidden_layers": 1},
    ],
    "jetmoe": [
        {"num_hidden_layers": 2, "kv_channels": 64, "num_local_experts": 3},
        {"num_hidden_layers": 2, "num_key_value_heads": 8, "tie_word_embeddings": False},
    ],
    "deepseek_v32": [
        {"num_hidden_layers": 4, "index_n_heads": 8, "n_shared_experts": 2, "q_lora_rank": 64},
        {"num_hidden_layers": 2, "first_k_dense_replace": 1, "v_head_dim": 32},
    ],
    "glm_moe_dsa": [
        {"num_hidden_layers": 4, "index_head_dim": 96, "n_routed_experts": 16},
        {"num_hidden_layers": 2, "mlp_layer_types": ["sparse", "dense"]},
        {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"]},
        {"num_hidden_layers": 4, "index_topk_pattern": "FSSF"},
        {"num_hidden_layers": 6, "index_topk_freq": 3, "index_skip_topk_offset": 1},
    ],
    "mimo_v2_flash": [
        {"num_hidden_layers": 8, "num_key_value_heads": 2, "v_head_dim": 64},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ],
    "bart": [{"d_model": 256, "decoder_layers": 2, "tie_word_embeddings": False}],
    "mbart": [{"decoder_ffn_dim": 100, "max_position_embeddings": 33}],
    "mvp": [{"use_prompt": True, "decoder_layers": 3}],
    "plbart": [{"d_model": 120, "vocab_size": 1000}],
    "pegasus": [{"d_model": 320, "decoder_layers": 3}],
    "bigbird_pegasus": [{"use_bias": True, "decoder_layers": 2}],
    "marian": [{"decoder_layers": 2, "vocab_size": 777, "pad_token_id": 0}],
    "blenderbot": [{"decoder_layers": 1, "max_position_embeddings": 64}],
    "blenderbot-small": [{"decoder_layers": 1, "d_model": 64}],
    "trocr": [
        {"cross_attention_hidden_size": 768, "layernorm_embedding": False},
        {"use_learned_position_embeddings": False, "d_model": 256},
    ],
    "whisper": [{"d_model": 60, "max_target_positions": 100, "tie_word_embeddings": False}],
}
"""Configurations of types that are counted: sizes, and what adds parameters."""


def test_at_least_a_hundred_types_are_counted() -> None:
    known = set(PARSERS) | set(COUNTERS)
    assert known <= set(causal_types())
    assert len(known) >= 100


def test_no_type_is_counted_by_two_tables() -> None:
    assert not set(PARSERS) & set(COUNTERS)
    assert set(COUNTERS) <= set(VARIED)


# Its default configuration has no layer_types, and does not build.
BUILDING = [(name, {}) for name in sorted(VARIED) if name != "lfm2_moe"]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    BUILDING + [(name, fields) for name, varied in VARIED.items() for fields in varied],
)
def test_parameters_of_counted_types(model_type: str, fields: dict[str, Any]) -> None:
    config = {"model_type": model_type, **fields}
    built = build_model(Case.from_dict({"model": config}), "meta")
    assert count_parameters(load_config(config)) == tensors.count_parameters(built).total


@pytest.mark.parametrize("model_type", [name for name, _ in BUILDING])
def test_saved_configurations_count_as_bare_ones(model_type: str) -> None:
    import transformers

    saved = {**transformers.AutoConfig.for_model(model_type).to_dict(), "model_type": model_type}
    bare = load_config({"model_type": model_type})
    assert count_parameters(replace(bare, config=saved)) == count_parameters(bare)
