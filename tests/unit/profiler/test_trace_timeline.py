"""The timeline and its replay: peaks by phase, what the bytes are, and which steps count."""

from __future__ import annotations

import pytest

from estimator.units import MIB
from profiler.trace.replay import Replay, replay
from profiler.trace.timeline import LOAD, Timeline


def phases(result: Replay) -> dict[str, tuple[int, int]]:
    return {
        phase.name: (phase.peak_allocated_bytes, phase.end_allocated_bytes)
        for phase in result.phases
    }


def test_a_run_of_one_step() -> None:
    timeline = Timeline()
    timeline.allocate(20 * MIB, "weights")
    timeline.begin_step(0)
    timeline.begin_phase("forward")
    saved = timeline.allocate(40 * MIB)
    passing = timeline.allocate(60 * MIB)
    timeline.free(passing)
    timeline.begin_phase("backward")
    gradient = timeline.allocate(30 * MIB)
    timeline.free(saved)
    timeline.name(gradient, "gradients")
    result = replay(timeline, first_step=0)
    assert phases(result) == {
        LOAD: (20 * MIB, 20 * MIB),
        "forward": (120 * MIB, 60 * MIB),
        "backward": (90 * MIB, 50 * MIB),
    }
    assert result.peak_phase == "forward"
    assert result.peak_allocated_bytes == result.peak_requested_bytes == 120 * MIB
    assert result.peak_reserved_bytes == 120 * MIB
    assert result.components.weights_bytes == 20 * MIB
    # Made by forward and freed by backward is an activation; freed by forward is not.
    assert result.components.activations_bytes == 40 * MIB
    assert result.components.temporaries_bytes == 60 * MIB


def test_peaks_are_read_from_the_first_counted_step_on() -> None:
    timeline = Timeline()
    for step, size in enumerate((80 * MIB, 40 * MIB)):
        timeline.begin_step(step)
        timeline.begin_phase("forward")
        timeline.free(timeline.allocate(size))
    every, last = replay(timeline, first_step=0), replay(timeline, first_step=1)
    assert every.peak_allocated_bytes == 80 * MIB
    # Cut out of the 80 MiB that the first step left in the cache.
    assert last.peak_allocated_bytes == 40 * MIB
    assert last.peak_reserved_bytes == 80 * MIB


def test_the_highest_of_several_spans_of_one_phase_counts() -> None:
    timeline = Timeline()
    timeline.begin_phase("forward")
    timeline.allocate(20 * MIB)
    timeline.begin_phase("backward")
    timeline.begin_phase("forward")
    timeline.allocate(30 * MIB)
    assert phases(replay(timeline, first_step=0))["forward"] == (50 * MIB, 50 * MIB)


def test_a_phase_that_begins_at_the_peak_keeps_the_earlier_ones_name() -> None:
    timeline = Timeline()
    timeline.begin_phase("forward")
    timeline.allocate(20 * MIB)
    timeline.begin_phase("backward")
    assert replay(timeline, first_step=0).peak_phase == "forward"


def test_what_recomputation_makes_is_an_activation() -> None:
    timeline = Timeline()
    timeline.begin_phase("backward")
    again, other = timeline.allocate(20 * MIB), timeline.allocate(30 * MIB)
    timeline.mark_recomputed(again)
    timeline.free(again)
    timeline.free(other)
    result = replay(timeline, first_step=0)
    assert result.components.activations_bytes == 20 * MIB
    assert result.components.temporaries_bytes == 30 * MIB


def test_nothing_is_freed_after_the_end() -> None:
    timeline = Timeline()
    handle = timeline.allocate(20 * MIB)
    timeline.close()
    timeline.free(handle)
    assert phases(replay(timeline, first_step=0)) == {LOAD: (20 * MIB, 20 * MIB)}


def test_requested_bytes_are_not_rounded() -> None:
    timeline = Timeline()
    timeline.begin_phase("forward")
    timeline.allocate(21 * MIB)
    timeline.allocate(1)
    result = replay(timeline, first_step=0)
    assert result.peak_requested_bytes == 21 * MIB + 1
    assert result.peak_allocated_bytes == 22 * MIB + 512
    assert result.components.total_bytes == result.peak_allocated_bytes


def test_tensors_of_no_bytes_have_no_block() -> None:
    timeline = Timeline()
    timeline.free(timeline.allocate(0))
    timeline.allocate(512, "weights")
    result = replay(timeline, first_step=0)
    assert result.peak_allocated_bytes == 512
    assert len(result.largest) == 1


def test_the_largest_storages_are_told_first() -> None:
    timeline = Timeline()
    for size in range(1, 15):
        timeline.allocate(size * MIB, "weights")
    largest = replay(timeline, first_step=0).largest
    assert len(largest) == 10
    sizes = [storage.size_bytes for storage in largest]
    assert sizes == sorted(sizes, reverse=True)
    assert largest[0].component == "weights"
    assert largest[0].phase == LOAD


@pytest.mark.parametrize("expandable", [False, True])
def test_expandable_segments_change_reserved_only(expandable: bool) -> None:
    timeline = Timeline()
    timeline.begin_phase("forward")
    for size in (30 * MIB, 50 * MIB, 90 * MIB):
        timeline.free(timeline.allocate(size))
    result = replay(timeline, first_step=0, expandable=expandable)
    assert result.peak_requested_bytes == 90 * MIB
    assert result.peak_reserved_bytes == (100 * MIB if expandable else 170 * MIB)
    assert result.components.total_bytes == result.peak_allocated_bytes == 90 * MIB
