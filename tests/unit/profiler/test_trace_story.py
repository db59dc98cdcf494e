"""The story and its picture, on timelines made by hand."""

from __future__ import annotations

import json
import random
import struct

import pytest

from estimator.case import Case
from estimator.report import Components, MemoryReport, Parameters, Peak
from estimator.units import MIB, format_both
from profiler.trace.picture import draw
from profiler.trace.replay import replay
from profiler.trace.story import MAX_POINTS, Story, tell
from profiler.trace.timeline import Timeline

CASE = Case.from_dict({"model": "gpt2", "task": "training"})


def told(timeline: Timeline, expandable: bool = False) -> Story:
    result = replay(timeline, 0, expandable)
    report = MemoryReport(
        source="trace",
        case=CASE.to_dict(),
        parameters=Parameters(0, 0),
        peak=Peak(result.peak_phase, None, result.peak_allocated_bytes),
        phases=result.phases,
        components=Components(),
    )
    return tell(timeline, result, report, expandable)


def small_run() -> Timeline:
    timeline = Timeline()
    timeline.allocate(4 * MIB, "weights", "model.embed")
    timeline.begin_phase("forward")
    saved = timeline.allocate(6 * MIB, None, "model.layers.0.mlp", "aten.mm")
    passing = timeline.allocate(1000, None, "model.layers.0.mlp", "aten.add")
    timeline.free(passing)
    timeline.begin_phase("backward")
    loss = timeline.allocate(30 * MIB, "logits", "Model", "aten._log_softmax_backward_data")
    timeline.free(loss)
    timeline.free(saved)
    timeline.close()
    return timeline


def long_run(events: int, seed: int = 1) -> Timeline:
    """Thousands of small allocations, and among them a single one that is the peak."""
    chance = random.Random(seed)
    timeline = Timeline()
    timeline.allocate(50 * MIB, "weights")
    timeline.begin_phase("forward")
    alive: list[int] = []
    while len(timeline.events) < events:
        if len(timeline.events) == events * 2 // 3:
            timeline.begin_phase("backward")
            alive.append(timeline.allocate(99 * MIB, "logits"))
            timeline.free(alive.pop())
        elif alive and chance.random() < 0.5:
            timeline.free(alive.pop(chance.randrange(len(alive))))
        else:
            alive.append(timeline.allocate(chance.randrange(1, 40_000)))
    return timeline


def test_where_the_peak_is() -> None:
    result = replay(small_run(), 0)
    assert result.instant == "backward: Model (_log_softmax_backward_data)"
    assert result.reason.startswith("Model (_log_softmax_backward_data); logits 75 %")
    first = result.largest[0]
    assert (first.size_bytes, first.component, first.phase) == (30 * MIB, "logits", "backward")
    assert [storage.component for storage in result.largest] == ["logits", "activations", "weights"]


def test_a_peak_that_nothing_makes_is_its_phase_alone() -> None:
    timeline = Timeline()
    timeline.begin_phase("forward")
    kept = timeline.allocate(MIB, "weights")
    timeline.begin_step(1)
    timeline.begin_phase("forward")
    timeline.free(kept)
    result = replay(timeline, 1)
    assert (result.instant, result.peak_event) == ("forward", 1)


def test_what_was_recomputed_says_so() -> None:
    timeline = Timeline()
    timeline.mark_recomputed(timeline.allocate(1, None, "model.layers.3", "aten.mm"))
    assert timeline.allocations[0].place == "model.layers.3 (recomputed mm)"


def test_a_short_run_is_told_whole() -> None:
    story = told(small_run())
    assert story.points.events == tuple(range(story.events + 1))
    assert story.points.allocated_bytes[-1] == 4 * MIB
    assert story.points.components["weights"] == (0, *[4 * MIB] * story.events)
    assert story.points.turnover_bytes[-1] == 40 * MIB + 1024
    assert [(phase.name, phase.first_event) for phase in story.phases] == [
        ("load", 0),
        ("forward", 1),
        ("backward", 4),
    ]


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("events", [3000, 30_000])
def test_a_long_run_keeps_what_matters(events: int, expandable: bool) -> None:
    timeline = long_run(events)
    story = told(timeline, expandable)
    points = story.points
    assert len(points.events) <= MAX_POINTS
    assert list(points.events) == sorted(set(points.events))
    result = replay(timeline, 0, expandable)
    assert max(points.allocated_bytes) == result.peak_allocated_bytes == story.peak.allocated_bytes
    at = points.events.index(story.peak.event)
    assert points.allocated_bytes[at] == story.peak.allocated_bytes
    assert {phase.peak_allocated_bytes for phase in story.phases} <= set(points.allocated_bytes)
    assert {phase.first_event for phase in story.phases} <= set(points.events)
    for index, total in enumerate(points.allocated_bytes):
        assert sum(column[index] for column in points.components.values()) == total
        assert total <= points.reserved_bytes[index]


def test_thousands_of_phases_are_thinned_too() -> None:
    timeline = Timeline()
    for _ in range(3000):
        timeline.begin_phase("forward")
        timeline.free(timeline.allocate(MIB))
    assert len(told(timeline).points.events) <= MAX_POINTS


def test_its_json() -> None:
    story = told(small_run())
    data = json.loads(json.dumps(story.to_dict()))
    assert (data["schema_version"], data["kind"], data["source"]) == (1, "timeline", "trace")
    assert data["case"]["model"] == "gpt2"
    columns = [data["points"][name] for name in ("event", "turnover_bytes", "reserved_bytes")]
    columns += data["points"]["components"].values()
    assert {len(column) for column in columns} == {story.events + 1}
    assert data["peak"]["largest"][0]["operation"] == "aten._log_softmax_backward_data"


def test_a_png_of_1000_by_500_the_same_every_time() -> None:
    story = told(long_run(3000))
    data = draw(story, "png")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1000, 500)
    assert draw(story, "png") == data


def test_an_svg_names_what_it_shows() -> None:
    story = told(small_run())
    text = draw(story, "svg").decode()
    peak = f"peak {format_both(40 * MIB)}"
    for words in ("traced, not measured", "logits", ">GB<", ">GiB<", ">forward<", peak):
        assert words in text
    assert draw(story, "svg").decode() == text
