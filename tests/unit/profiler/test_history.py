"""A measured allocation history: read from PyTorch's snapshot, drawn beside a traced run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from estimator.errors import RecordError
from estimator.units import MIB
from profiler.history import Mark, read_history
from profiler.trace.replay import replay
from profiler.trace.snapshot import snapshot
from profiler.trace.timeline import Timeline

FRAMES = [{"filename": "train.py", "line": 3, "name": "forward"}]


def event(action: str, addr: int, size: int, metadata: str = "") -> dict[str, Any]:
    return {
        "action": action,
        "addr": addr,
        "size": size,
        "stream": 0,
        "frames": FRAMES,
        "user_metadata": metadata,
    }


EVENTS = [
    event("segment_alloc", 0, 2 * MIB),
    event("alloc", 0, 1000, "load of step 1"),
    event("alloc", 1024, 600, "forward of step 1"),
    event("free_requested", 0, 1000, "load of step 1"),
    event("free_completed", 0, 1000, "load of step 1"),
    {"action": "oom", "size": 2**40, "device_free": 5},
    event("snapshot", 0, 0),
]


def block(size: int, requested: int, state: str) -> dict[str, Any]:
    return {"size": size, "requested_size": requested, "state": state, "frames": []}


def segment(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"total_size": sum(one["size"] for one in blocks), "blocks": list(blocks)}


WHOLE = {
    "segments": [
        segment(block(1024, 600, "active_allocated"), block(2 * MIB - 1024, 0, "inactive"))
    ],
    "device_traces": [EVENTS],
}


def write(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_events_are_added_up(tmp_path: Path) -> None:
    history = read_history(write(tmp_path / "s.pickle", WHOLE))
    assert history.allocated_bytes == (0, 0, 1024, 2048, 1024)
    assert history.reserved_bytes == (0, *4 * (2 * MIB,))
    assert history.turnover_bytes == (0, 0, 1024, 2048, 2048)
    assert history.marks == (Mark(1, "load of step 1"), Mark(2, "forward of step 1"))
    assert history.peak_event == 3


def test_what_was_there_before_the_history_began_is_counted(tmp_path: Path) -> None:
    older = segment(block(20 * MIB, 20 * MIB, "active_awaiting_free"))
    content = {**WHOLE, "segments": [*WHOLE["segments"], older]}
    history = read_history(write(tmp_path / "s.pickle", content))
    assert history.allocated_bytes[0] == 20 * MIB
    assert history.allocated_bytes[-1] == 20 * MIB + 1024
    assert history.reserved_bytes[0] == 20 * MIB


def test_a_history_without_names_has_no_marks(tmp_path: Path) -> None:
    bare = [{key: e[key] for key in e if key != "user_metadata"} for e in EVENTS]
    history = read_history(write(tmp_path / "s.pickle", {**WHOLE, "device_traces": [[], bare]}))
    assert history.marks == ()
    assert max(history.allocated_bytes) == 2048


class Call:
    """What runs code when it is unpickled by the usual way."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Call(), "is not a snapshot of PyTorch's CUDA allocator"),
        ([1, 2], "is not a snapshot of PyTorch's CUDA allocator"),
        ({"segments": []}, "is not a snapshot of PyTorch's CUDA allocator"),
        ({**WHOLE, "device_traces": [[{"action": "alloc"}]]}, "is not a snapshot"),
        ({**WHOLE, "device_traces": [[], []]}, "holds the history of no GPU, but must be of one"),
        ({**WHOLE, "device_traces": [EVENTS, EVENTS]}, "holds the history of 2 GPUs"),
    ],
)
def test_what_is_no_history_of_one_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match=said):
        read_history(write(tmp_path / "s.pickle", content))
    assert not Path("ran").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read: no such file or directory"):
        read_history(tmp_path / "none.pickle")
    cut = tmp_path / "cut.pickle"
    cut.write_bytes(pickle.dumps(WHOLE)[:-40])
    with pytest.raises(RecordError, match="is not a snapshot"):
        read_history(cut)


def timeline() -> Timeline:
    made = Timeline()
    made.allocate(3 * MIB, "weights")
    made.begin_phase("forward")
    made.free(made.allocate(700))
    made.allocate(90_000)
    made.close()
    return made


def test_a_traced_run_is_not_taken_for_a_measured_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="was written by gpumem trace: it is not measured"):
        read_history(write(tmp_path / "s.pickle", snapshot(timeline())))


def test_the_allocators_own_format_gives_the_allocators_own_figures(tmp_path: Path) -> None:
    content = snapshot(timeline())
    for one in content["device_traces"][0]:
        one["frames"] = FRAMES
    history = read_history(write(tmp_path / "s.pickle", content))
    result = replay(timeline(), 0)
    assert max(history.allocated_bytes) == result.peak_allocated_bytes
    assert max(history.reserved_bytes) == result.peak_reserved_bytes
