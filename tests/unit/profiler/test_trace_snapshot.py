"""A trace's snapshot, read by the viewer that PyTorch ships."""

from __future__ import annotations

import pickle
import pickletools
import random
from typing import Any

import pytest

from profiler.trace.replay import replay
from profiler.trace.snapshot import pickled_snapshot, snapshot
from profiler.trace.timeline import Timeline

READABLE = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT"),
    *("LONG_BINPUT", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}
"""Opcodes that torch/utils/viz/MemoryViz.js knows."""

MOST_BYTES_OF_A_DOUBLE = 2**53


def run(seed: int = 1, events: int = 400) -> Timeline:
    chance = random.Random(seed)
    timeline = Timeline()
    timeline.allocate(5 * 2**31, "weights", "model.embed")
    timeline.begin_phase("forward")
    alive: list[int] = []
    while len(timeline.events) < events:
        if alive and chance.random() < 0.45:
            timeline.free(alive.pop(chance.randrange(len(alive))))
        else:
            size = int(2 ** chance.uniform(0, 25))
            alive.append(timeline.allocate(size, None, f"model.layers.{seed}", "aten.mm"))
    timeline.mark_recomputed(alive[0])
    timeline.allocate(0)
    timeline.close()
    return timeline


@pytest.mark.parametrize("expandable", [False, True])
def test_totals_are_the_replays(expandable: bool) -> None:
    timeline = run()
    result = replay(timeline, 0, expandable)
    made = snapshot(timeline, expandable)
    segments = made["segments"]
    assert sum(segment["total_size"] for segment in segments) == result.peak_reserved_bytes
    assert (
        sum(segment["active_size"] for segment in segments) == result.phases[-1].end_allocated_bytes
    )
    mapped = [e for e in made["device_traces"][0] if e["action"].startswith("segment")]
    assert sum(event["size"] for event in mapped) == result.peak_reserved_bytes
    assert {e["action"] for e in mapped} == {"segment_map" if expandable else "segment_alloc"}
    if expandable:
        assert len(segments) == 2


@pytest.mark.parametrize("expandable", [False, True])
def test_blocks_tile_their_segments_and_events_lie_in_them(expandable: bool) -> None:
    made = snapshot(run(), expandable)
    for segment in made["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            assert block["requested_size"] <= block["size"]
            address += block["size"]
        assert address == segment["address"] + segment["total_size"] < MOST_BYTES_OF_A_DOUBLE
    spans = [(s["address"], s["address"] + s["total_size"]) for s in made["segments"]]
    alive: dict[int, int] = {}
    for event in made["device_traces"][0]:
        low, high = event["addr"], event["addr"] + event["size"]
        assert any(start <= low and high <= end for start, end in spans)
        if event["action"] == "alloc":
            assert event["addr"] not in alive
            alive[event["addr"]] = event["size"]
        elif event["action"] == "free_completed":
            assert alive.pop(event["addr"]) == event["size"]
    blocks = [block for segment in made["segments"] for block in segment["blocks"]]
    active = {b["address"]: b["requested_size"] for b in blocks if b["state"] == "active_allocated"}
    assert active == alive


def test_frames_tell_the_operation_the_module_and_the_phase() -> None:
    made = snapshot(run())
    alloc = next(
        e for e in made["device_traces"][0] if e["action"] == "alloc" and e["size"] < 2**31
    )
    told = {frame["filename"]: frame["name"] for frame in alloc["frames"]}
    assert told["operation"] == "aten.mm"
    assert told["module"] == "model.layers.1"
    assert told["phase"] == "forward of step 1"
    assert told["component"] == alloc["category"]


@pytest.mark.parametrize("expandable", [False, True])
def test_pytorchs_viewer_opens_it(expandable: bool) -> None:
    viewer: Any = pytest.importorskip("torch.cuda._memory_viz")
    data = pickled_snapshot(run(), expandable)
    assert {opcode.name for opcode, _, _ in pickletools.genops(data)} <= READABLE
    loaded = pickle.loads(data)
    assert "total_reserved" in viewer.segsum(loaded)
    listed = viewer.trace(loaded)
    assert "entries" in listed
    assert listed.count("cudaMalloc") == (0 if expandable else len(loaded["segments"]))
    for plot in (viewer.trace_plot, viewer.segment_plot):
        assert "MemoryViz" in plot(loaded)
    assert "model.layers.1" in viewer.memory(loaded, format_flamegraph=str)
    after = pickle.loads(pickled_snapshot(run(events=500), expandable))
    changes = viewer.compare(loaded["segments"], after["segments"], format_flamegraph=str)
    assert expandable or "only_after" in changes


def test_the_same_run_gives_the_same_bytes() -> None:
    assert pickled_snapshot(run()) == pickled_snapshot(run())
