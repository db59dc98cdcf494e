"""Reserved bytes: the run's blocks, played on the allocator's model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator import Case, estimate
from estimator.architecture.estimate import play_within
from estimator.counters import rules, runs_within
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_LOW_BYTES
from estimator.units import GIB, MIB

SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
}


def case(**fields: Any) -> Case:
    return Case.from_dict({"model": SMALL, **fields})


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["inference", "training"]),
    st.integers(1, 8),
    st.integers(1, 700),
    st.booleans(),
    st.sampled_from(["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adafactor", "sgd"]),
    st.integers(1, 3),
)
def test_counters_are_in_order_and_inside_their_intervals(
    task: str, batch: int, length: int, checkpointing: bool, optimizer: str, steps: int
) -> None:
    fields: dict[str, Any] = {"task": task, "batch_size": batch, "sequence_length": length}
    if task == "training":
        fields |= {"gradient_checkpointing": checkpointing, "optimizer": optimizer}
        fields |= {"gradient_accumulation_steps": steps}
    peak = estimate(case(**fields)).peak
    reserved, device = peak.reserved_interval, peak.device_interval
    assert reserved is not None
    assert device is not None
    assert peak.reserved_bytes is not None
    assert peak.allocated_bytes <= peak.reserved_bytes
    assert peak.reserved_bytes % (2 * MIB) == 0 or peak.reserved_bytes == peak.allocated_bytes
    assert peak.allocated_bytes <= reserved.low_bytes <= peak.reserved_bytes <= reserved.high_bytes
    assert device.low_bytes == peak.allocated_bytes + CONTEXT_LOW_BYTES
    assert reserved.high_bytes < device.high_bytes


def test_a_growing_cache_outgrows_its_segments() -> None:
    model = "meta-llama/Llama-2-7b-hf"
    asked = {"model": model, "dtype": "float16", "batch_size": 8, "sequence_length": 256}
    short, long = (
        estimate(Case.from_dict({**asked, "max_new_tokens": count})).peak for count in (1, 512)
    )
    assert short.reserved_bytes is not None
    assert long.reserved_bytes is not None
    assert short.reserved_bytes < 1.05 * short.allocated_bytes
    assert long.reserved_bytes > 1.8 * long.allocated_bytes
    static = estimate(Case.from_dict({**asked, "max_new_tokens": 512, "cache": "static"})).peak
    assert static.reserved_bytes is not None
    assert static.reserved_bytes < 1.2 * static.allocated_bytes


def test_on_a_card_cached_segments_are_given_back() -> None:
    fields = {"model": "meta-llama/Llama-2-7b-hf", "batch_size": 8, "max_new_tokens": 512}
    free = estimate(Case.from_dict(fields)).peak
    held = estimate(Case.from_dict({**fields, "gpu": "RTX-5090"})).peak
    assert free.reserved_bytes is not None
    assert held.reserved_bytes is not None
    room = find_gpu("RTX-5090").memory_bytes - CONTEXT_LOW_BYTES
    assert held.reserved_bytes <= room < free.reserved_bytes


def test_less_than_what_is_allocated_never_suffices() -> None:
    c = case(task="training", batch_size=4)
    allocated = estimate(c).peak.allocated_bytes
    assert play_within(c, allocated - MIB).failed
    assert not runs_within(c, allocated, allocated - 1)
    reserved = estimate(c).peak.reserved_bytes
    assert reserved is not None
    played = play_within(c, reserved)
    assert (played.peak_bytes, played.retries, played.failed) == (reserved, 0, False)
    assert runs_within(c, allocated, int(reserved * rules().reserved["training"].high_ratio) + MIB)


def test_what_the_driver_shows_ends_at_the_card() -> None:
    peak = estimate(Case.from_dict({"model": "gpt2", "batch_size": 4, "gpu": "L4"})).peak
    assert peak.device_interval is not None
    assert peak.device_interval.high_bytes < 23034 * MIB


def test_thousands_of_layers_are_not_played() -> None:
    deep = Case.from_dict({"model": {**SMALL, "num_hidden_layers": 6000}, "task": "training"})
    peak = estimate(deep).peak
    assert peak.reserved_bytes is None
    assert peak.device_interval is None
    assert runs_within(deep, 10 * GIB, 11 * GIB)
    assert not runs_within(deep, 10 * GIB, 10 * GIB + MIB)


@pytest.mark.parametrize("task", ["inference", "training"])
def test_the_basis_says_that_it_was_simulated(task: str) -> None:
    interval = estimate(case(task=task)).peak.reserved_interval
    assert interval is not None
    assert interval.basis.startswith("simulated, not measured: of ")
    assert task in interval.basis
