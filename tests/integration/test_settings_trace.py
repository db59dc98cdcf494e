"""Caches, optimizers and kinds of adapters: the formulas against the trace, to the byte asked for.

What tensors ask for is the same on both sides; blocks differ by the history of a small model.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from profiler.trace import decoding, trace_case

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 200}
TRAINING = {"task": "training", "sequence_length": 256}
DORA = {**TRAINING, "method": "lora"}


def agree(model: dict[str, Any], **fields: Any) -> None:
    case = Case.from_dict({"model": model, "batch_size": 2, "sequence_length": 256, **fields})
    estimated, traced = estimate(case).peak, trace_case(case).peak
    assert estimated.requested_bytes == pytest.approx(traced.requested_bytes, rel=5e-4)
    assert estimated.allocated_bytes == pytest.approx(traced.allocated_bytes, rel=0.02)
    assert estimated.phase == traced.phase


@pytest.mark.parametrize("model", [LLAMA, MISTRAL], ids=["full", "sliding"])
@pytest.mark.parametrize("new", [1, 40])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_static_cache(model: dict[str, Any], new: int, attention: str) -> None:
    agree(model, cache="static", max_new_tokens=new, attention=attention)


@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None, reason="a quantized cache needs optimum-quanto"
)
@pytest.mark.parametrize("new", [3, 140])
def test_quantized_cache(new: int) -> None:
    # So short a prompt that the last step that quantizes anew is the peak.
    agree(LLAMA, cache="quantized", batch_size=16, sequence_length=32, max_new_tokens=new)
    agree(LLAMA, cache="quantized", sequence_length=1024, max_new_tokens=new)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora": {"use_dora": True, "lora_dropout": 0.1}},
        {"quantization": "nf4", "double_quantization": True, "gradient_checkpointing": True},
        {"quantization": "int8"},
        {"mixed_precision": "bf16", "dtype": "float32"},
        {"mixed_precision": "bf16", "quantization": "nf4", "prepare_kbit": False},
        {"mixed_precision": "bf16", "quantization": "int8", "prepare_kbit": False},
        {"task": "inference"},
    ],
    ids=["plain", "dropout", "nf4", "int8", "autocast", "amp nf4", "amp int8", "inference"],
)
def test_dora(fields: dict[str, Any]) -> None:
    agree(LLAMA, **{**DORA, "lora": {"use_dora": True}, **fields})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_adafactor(dtype: str, method: str) -> None:
    agree(
        LLAMA,
        **TRAINING | {"sequence_length": 32},
        dtype=dtype,
        method=method,
        optimizer="adafactor",
    )


@pytest.mark.parametrize(
    "optimizer",
    ["ademamix", "ademamix_8bit", "paged_ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"],
)
def test_bitsandbytes_optimizers(optimizer: str) -> None:
    agree(LLAMA, **TRAINING | {"sequence_length": 32}, optimizer=optimizer)


def test_a_paged_cache_has_whole_pages() -> None:
    def cache_bytes(new: int) -> int:
        case = {"model": LLAMA, "cache": "paged", "batch_size": 8, "max_new_tokens": new}
        return estimate(Case.from_dict({**case, "sequence_length": 4096})).components.kv_cache_bytes

    assert cache_bytes(2) == cache_bytes(17) > cache_bytes(1)


def test_steps_of_a_quantized_cache_are_skipped_without_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("optimum.quanto", reason="a quantized cache needs optimum-quanto")
    case = Case.from_dict(
        {"model": LLAMA, "cache": "quantized", "sequence_length": 32, "max_new_tokens": 140}
    )
    skipped = trace_case(case)
    tokens = case.max_new_tokens
    assert tokens is not None
    monkeypatch.setattr(decoding, "played_steps", lambda _: list(range(tokens - 1)))
    assert skipped.phases == trace_case(case).phases


GPT2 = {"model_type": "gpt2", "n_embd": 512, "n_layer": 3, "n_head": 8, "vocab_size": 32_000}
PHI = {**LLAMA, "model_type": "phi", "num_key_value_heads": 8, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize("model", [LLAMA, GPT2, PHI], ids=["llama", "gpt2", "phi"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast(model: dict[str, Any], dtype: str, attention: str) -> None:
    agree(model, **TRAINING, dtype=dtype, mixed_precision="bf16", attention=attention)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flash_attn_of_a_prepared_base_is_given_half_precision(
    quantization: str, checkpointing: bool
) -> None:
    fields = {**DORA, "batch_size": 2, "attention": "flash_attention_2"}
    # A vocabulary so small that the peak is a layer's; blocks of so small a model differ.
    fields |= {"model": {**LLAMA, "vocab_size": 500}, "quantization": quantization}
    case = Case.from_dict({**fields, "gradient_checkpointing": checkpointing})
    asked, traced = (report.peak.requested_bytes for report in (estimate(case), trace_case(case)))
    assert asked == pytest.approx(traced, rel=5e-4)
