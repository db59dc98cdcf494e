"""One GPU of DeepSpeed-Ulysses: the formulas against the trace, to the bytes asked for."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.errors import CaseError, UnsupportedError
from profiler.trace import trace_case

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}
LLAMA = {"model_type": "llama", **SHAPE}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "one-head": {**LLAMA, "num_key_value_heads": 1},
    "mistral-window": {"model_type": "mistral", "sliding_window": 100, **SHAPE},
    "qwen2": {"model_type": "qwen2", **SHAPE},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, **SHAPE},
    "gemma2": {"model_type": "gemma2", "head_dim": 64, "sliding_window": 100, **SHAPE},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, **SHAPE},
    "olmo2": {"model_type": "olmo2", **SHAPE},
}


def shared(model: dict[str, Any], ranks: int = 2, **fields: Any) -> Case:
    return Case.from_dict(
        {
            "model": model,
            "task": "training",
            "optimizer": "sgd",
            "batch_size": 2,
            "sequence_length": 512,
            "parallelism": {"sp_size": ranks},
            **fields,
        }
    )


def agree(case: Case) -> None:
    estimated, traced = estimate(case), trace_case(case)
    wanted = traced.peak.requested_bytes
    assert estimated.peak.requested_bytes == pytest.approx(wanted, rel=3e-4)
    assert estimated.parameters == traced.parameters


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_families(model: str, checkpointing: bool) -> None:
    agree(shared(MODELS[model], gradient_checkpointing=checkpointing))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_and_few_heads(ranks: int, batch: int) -> None:
    """Four key/value heads are shared out to four ranks, and repeated for eight."""
    fields = {"batch_size": batch, "gradient_checkpointing": True}
    agree(shared({**LLAMA, "intermediate_size": 64}, ranks, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "flash_attention_2"},
        {"dtype": "float32"},
        {"dtype": "float32", "mixed_precision": "bf16"},
        {"method": "lora"},
        {"method": "lora", "quantization": "nf4"},
        {"keep_logits": True},
    ],
    ids=["flash", "fp32", "autocast", "lora", "qlora", "keep-logits"],
)
def test_settings(fields: dict[str, Any]) -> None:
    agree(shared(LLAMA, **fields))


def test_what_more_gpus_leave_on_each() -> None:
    """Weights stay whole; activations are shared out."""
    alone, four = (
        trace_case(shared(LLAMA, ranks, sequence_length=2048)).components for ranks in (1, 4)
    )
    assert four.weights_bytes == pytest.approx(alone.weights_bytes, rel=0.01)
    assert 3.5 < alone.activations_bytes / four.activations_bytes < 4.5


@pytest.mark.parametrize("source", [estimate, trace_case])
def test_heads_that_cannot_be_shared_out(source: Any) -> None:
    with pytest.raises(CaseError, match="has 8 attention heads and 4 key/value heads"):
        source(shared(LLAMA, 16))


@pytest.mark.parametrize("source", [estimate, trace_case])
def test_a_model_without_key_value_heads(source: Any) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 256, "n_head": 8, "n_layer": 2, "vocab_size": 300}
    with pytest.raises(UnsupportedError, match="use parallelism null"):
        source(shared(gpt2))
