"""Formulas of the dense families against the trace: transformers' own code on meta tensors.

Sizes are small and vocabularies tiny, so that peaks are the layers' and not the loss's.
"""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from profiler.trace import trace_case

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"model_type": "gemma2", "head_dim": 64, **WINDOW},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 64,
        "sliding_window_pattern": 2,
        **WINDOW,
    },
    "vaultgemma": {"model_type": "vaultgemma", "head_dim": 64, **WINDOW},
    "arcee": {"model_type": "arcee"},
    "smollm3": {"model_type": "smollm3"},
    "smollm3, sliding": {
        "model_type": "smollm3",
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        **WINDOW,
    },
    "seed_oss": {"model_type": "seed_oss", "head_dim": 32},
    "ministral": {"model_type": "ministral", "head_dim": 32, **WINDOW},
    "ministral3": {"model_type": "ministral3", "head_dim": 32},
    "apertus": {"model_type": "apertus"},
    "olmo": {"model_type": "olmo"},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", **WINDOW},
    "stablelm": {"model_type": "stablelm"},
    "stablelm, parallel": {
        "model_type": "stablelm",
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "starcoder2": {"model_type": "starcoder2", "embedding_dropout": 0.1, **WINDOW},
    "phi": {"model_type": "phi", "resid_pdrop": 0.1, "qk_layernorm": True},
    "phi3": {"model_type": "phi3", **WINDOW},
    "granite": {"model_type": "granite", "residual_multiplier": 0.2},
    "glm": {"model_type": "glm", "head_dim": 32},
    "glm4": {"model_type": "glm4", "head_dim": 32},
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
    "cohere2": {"model_type": "cohere2", **WINDOW},
    "nemotron": {"model_type": "nemotron"},
    "exaone4": {"model_type": "exaone4", **WINDOW},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 32},
    "hunyuan": {"model_type": "hunyuan_v1_dense", "head_dim": 32},
    "helium": {"model_type": "helium", "head_dim": 32, "num_key_value_heads": 8},
    "cwm": {"model_type": "cwm", "head_dim": 32, **WINDOW},
    "persimmon": {"model_type": "persimmon"},
    # Heads that no fused kernel takes: sdpa's math path, in fp32.
    "mistral, heads of 20": {"model_type": "mistral", "head_dim": 20, **WINDOW},
    "mistral, heads of 320": {"model_type": "mistral", "head_dim": 320, "sliding_window": None},
}
CASES: dict[str, dict[str, Any]] = {
    "full": {"task": "training", "batch_size": 2, "sequence_length": 300},
    "lora, checkpointing, eager": {
        "task": "training",
        "method": "lora",
        "gradient_checkpointing": True,
        "attention": "eager",
        "batch_size": 3,
        "sequence_length": 200,
    },
    "generate": {
        "task": "inference",
        "dtype": "float16",
        "batch_size": 2,
        "sequence_length": 500,
        "max_new_tokens": 5,
    },
}


ADAPTED = ("gemma2", "gemma3", "olmo3", "phi", "glm", "cohere", "stablelm, parallel", "granite")
"""Families that are also traced with adapters: one of each kind of layer."""

RUNS = [
    (family, run)
    for family in FAMILIES
    for run in CASES
    if family in ADAPTED or run != "lora, checkpointing, eager"
]


@pytest.mark.parametrize(("family", "run"), RUNS)
def test_formulas_agree_with_the_trace(family: str, run: str) -> None:
    case = Case.from_dict({**CASES[run], "model": {**SIZES, **FAMILIES[family]}})
    expected, traced = estimate(case), trace_case(case)
    assert expected.parameters == traced.parameters
    assert expected.peak.requested_bytes == pytest.approx(traced.peak.requested_bytes, rel=0.005)
