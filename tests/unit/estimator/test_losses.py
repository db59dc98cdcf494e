"""Fused losses: which models they go with, and what they are worth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator import Case, MemoryReport, estimate
from estimator.architecture import estimate_architecture
from estimator.changes import possible_changes
from estimator.errors import UnsupportedError

FUSED = ("liger", "chunked")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}


def training(loss: str = "standard", **fields: Any) -> Case:
    return Case.from_dict({"model": LLAMA, "task": "training", "loss": loss, **fields})


def report(loss: str, **fields: Any) -> MemoryReport:
    return estimate(training(loss, **fields))


@pytest.mark.parametrize("loss", FUSED)
def test_no_logits_of_the_whole_batch(loss: str) -> None:
    fields = {"batch_size": 8, "sequence_length": 2048, "method": "lora"}
    standard, fused = report("standard", **fields), report(loss, **fields)
    logits = 2 * 8 * 2048 * 128_256
    assert standard.peak.allocated_bytes - fused.peak.allocated_bytes > 4 * logits
    assert fused.components.logits_bytes < logits / 10


@pytest.mark.parametrize("loss", FUSED)
def test_the_peak_names_the_loss(loss: str) -> None:
    fused = report(loss, batch_size=4, sequence_length=1024, method="lora")
    name = {"liger": "Liger's fused loss", "chunked": "TRL's fused head"}[loss]
    assert fused.peak.instant is not None
    assert f"{name} over the 128256-token vocabulary" in fused.peak.instant
    assert any(name.split("'")[0] in line for line in fused.assumptions)


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        ("openai-community/gpt2", "liger", "Liger has no fused loss for gpt2"),
        ({**LLAMA, "model_type": "granite"}, "liger", "Liger has no fused loss for granite"),
        (
            {"model_type": "bert", "is_decoder": True},
            "chunked",
            "leaves out what bert does before its head",
        ),
    ],
)
def test_models_without_the_loss(model: Any, loss: str, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says) as raised:
        estimate(Case.from_dict({"model": model, "task": "training", "loss": loss}))
    assert "use loss" in str(raised.value)


@given(
    loss=st.sampled_from(FUSED),
    batch=st.integers(1, 9),
    length=st.integers(1, 9000),
    vocabulary=st.integers(1, 200_000),
    fields=st.sampled_from(
        [
            {},
            {"dtype": "float32"},
            {"dtype": "float32", "mixed_precision": "bf16"},
            {"dtype": "float16", "mixed_precision": "fp16", "gpu": "T4"},
            {"method": "lora", "quantization": "nf4"},
            {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        ]
    ),
    tied=st.booleans(),
)
def test_every_part_is_positive_and_frozen_heads_need_no_more(
    loss: str, batch: int, length: int, vocabulary: int, fields: dict[str, Any], tied: bool
) -> None:
    model = {**LLAMA, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    found = report(loss, model=model, batch_size=batch, sequence_length=length, **fields)
    parts = [getattr(found.components, name) for name in type(found.components).__slots__]
    assert min(parts) >= 0
    assert sum(parts) == found.peak.allocated_bytes
    assert all(phase.end_allocated_bytes >= 0 for phase in found.phases)
    # What the loss made is gone after the step: weights, states, workspaces and a batch are left,
    # but for rests that depend on what was there before.
    fields = {**fields, "model": model, "batch_size": batch, "sequence_length": length}
    own = estimate_architecture(training(loss, **fields), history=False)
    after, before = own.phases[-1].end_allocated_bytes, own.phases[0].end_allocated_bytes
    plain = estimate_architecture(training(**fields), history=False)
    assert after == plain.phases[-1].end_allocated_bytes
    assert before == plain.phases[0].end_allocated_bytes


@given(tokens=st.integers(2, 20_000))
def test_more_tokens_never_need_less(tokens: int) -> None:
    for loss in FUSED:
        fields = {"batch_size": 1, "method": "lora", "gradient_checkpointing": True}
        fewer = report(loss, sequence_length=tokens - 1, **fields).peak.requested_bytes
        more = report(loss, sequence_length=tokens, **fields).peak.requested_bytes
        # A chunk of Liger's has a power of two tokens: one token more may make two smaller ones.
        assert more >= fewer or loss == "liger"


def test_the_loss_is_among_the_cheapest_changes() -> None:
    offered = list(possible_changes(training(keep_logits=True, batch_size=2)))
    costs = {change.fields["loss"]: change.cost for change in offered if "loss" in change.fields}
    assert costs == {"liger": "free", "chunked": "cheap"}
    liger = next(change for change in offered if change.fields.get("loss") == "liger")
    assert "liger-kernel" in liger.why
    assert not liger.applied(training(keep_logits=True)).keep_logits
    assert not any("loss" in change.fields for change in possible_changes(training("liger")))
