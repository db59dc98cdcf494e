"""Cards that a run fits on, just fits on, and does not fit on."""

from __future__ import annotations

import pytest

from estimator.units import MIB
from profiler.trace.capacity import Capacity, attempt, check_capacity
from profiler.trace.timeline import Timeline


def two_steps() -> Timeline:
    """30 MiB in the first step, freed; then 40 MiB: 80 MiB with the weights' 10 if all is kept."""
    timeline = Timeline()
    timeline.allocate(10 * MIB, "weights", "model.embed")
    timeline.begin_phase("forward")
    timeline.free(timeline.allocate(30 * MIB, None, "model.mlp", "aten.mm"))
    timeline.begin_step(1)
    timeline.begin_phase("backward")
    timeline.free(timeline.allocate(40 * MIB - 7, "logits", "Model", "aten.nll_loss_backward"))
    return timeline


def test_enough_for_what_is_cached_needs_no_retry() -> None:
    result = attempt(two_steps(), 80 * MIB)
    assert (result.failure, result.retries, result.peak_reserved_bytes) == (None, 0, 80 * MIB)


@pytest.mark.parametrize("mib", [50, 79])
def test_cached_segments_are_given_back_first(mib: int) -> None:
    result = attempt(two_steps(), mib * MIB)
    assert (result.failure, result.retries, result.peak_reserved_bytes) == (None, 1, 50 * MIB)


def test_a_failure_says_where_and_how_much() -> None:
    result = attempt(two_steps(), 50 * MIB - 1)
    assert result.retries == 1
    failure = result.failure
    assert failure is not None
    assert (failure.phase, failure.step) == ("backward", 1)
    assert (failure.module, failure.operation) == ("Model", "aten.nll_loss_backward")
    assert (failure.asked_bytes, failure.segment_bytes) == (40 * MIB - 7, 40 * MIB)
    assert (failure.reserved_bytes, failure.allocated_bytes) == (10 * MIB, 10 * MIB)
    assert result.peak_reserved_bytes == 40 * MIB


def test_weights_that_do_not_fit_fail_at_load() -> None:
    failure = attempt(two_steps(), 0).failure
    assert failure is not None
    assert (failure.phase, failure.place, failure.reserved_bytes) == ("load", "model.embed", 0)


def test_expandable_segments_reuse_what_fragments_would_not() -> None:
    timeline = Timeline()
    pieces = [timeline.allocate(12 * MIB) for _ in range(4)]
    for piece in pieces[:3]:
        timeline.free(piece)
    # Three free pieces of 12 MiB are 36 MiB only where they lie side by side.
    timeline.allocate(36 * MIB)
    assert attempt(timeline, 60 * MIB).retries == 1
    assert attempt(timeline, 60 * MIB, expandable=True).retries == 0


@pytest.mark.parametrize(
    ("memory_mib", "state", "context_mib"),
    [(55, "fits", 5), (54, "tight", 5), (52, "tight", 5), (51, "does not fit", 2)],
)
def test_states_follow_the_context(memory_mib: int, state: str, context_mib: int) -> None:
    capacity = check_capacity(two_steps(), memory_mib * MIB, 2 * MIB, 5 * MIB)
    assert capacity.state == state
    assert capacity.context_bytes == context_mib * MIB
    assert capacity.attempt.available_bytes == capacity.memory_bytes - capacity.context_bytes
    assert (capacity.attempt.failure is None) == (state == "fits")


def test_its_json_has_the_failure_or_null() -> None:
    def keys(capacity: Capacity) -> set[str]:
        return set(capacity.to_dict())

    fits = check_capacity(two_steps(), 100 * MIB, 0, 0)
    fails = check_capacity(two_steps(), 20 * MIB, 0, 0, expandable=True)
    assert keys(fits) == keys(fails)
    assert fits.to_dict()["failure"] is None
    assert fails.to_dict()["expandable_segments"] is True
    assert fails.to_dict()["failure"]["phase"] == "forward"
