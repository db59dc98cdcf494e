"""Configurations of model types with formulas of which the catalogue has no model.

Each is the default configuration of transformers 5.17, written down as far as it decides memory, so
that the same seed draws the same cases whatever is installed. GPT-SW3 is its published 1.3B model
in round numbers; Ministral lacks `head_dim` by default, and cannot be built without.
"""

from __future__ import annotations

from typing import Any

_BERT: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}

BASE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "axk1": {
        "vocab_size": 163_840,
        "hidden_size": 7168,
        "intermediate_size": 18_432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "n_shared_experts": 1,
        "n_routed_experts": 192,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
    },
    "bert": {**_BERT, "is_decoder": True},
    "bert-generation": {
        "vocab_size": 50_358,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "is_decoder": True,
    },
    "camembert": {**_BERT, "is_decoder": True},
    "data2vec-text": {**_BERT, "is_decoder": True},
    "ernie": {**_BERT, "is_decoder": True},
    "gpt-sw3": {
        "vocab_size": 64_000,
        "n_positions": 2048,
        "n_embd": 2048,
        "n_layer": 24,
        "n_head": 32,
    },
    "granitemoeshared": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "max_position_embeddings": 2048,
    },
    "jais2": {
        "vocab_size": 150_272,
        "hidden_size": 3328,
        "intermediate_size": 26_624,
        "num_hidden_layers": 32,
        "num_attention_heads": 26,
        "num_key_value_heads": 26,
        "head_dim": 128,
    },
    "mellum": {
        "vocab_size": 98_304,
        "hidden_size": 2304,
        "intermediate_size": 7168,
        "moe_intermediate_size": 896,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sliding_window": 1024,
        "num_local_experts": 64,
        "num_experts_per_tok": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 14,
        "mlp_layer_types": ["sparse"] * 28,
    },
    "ministral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"] * 16,
    },
    "nanochat": {
        "vocab_size": 50_304,
        "hidden_size": 768,
        "intermediate_size": 8192,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "roberta": {**_BERT, "vocab_size": 50_265, "is_decoder": True},
    "solar_open": {
        "vocab_size": 196_608,
        "hidden_size": 4096,
        "moe_intermediate_size": 1280,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
    },
    "xlm-roberta": {**_BERT, "vocab_size": 250_002, "is_decoder": True},
}
"""Configuration by `model_type`, without it."""
