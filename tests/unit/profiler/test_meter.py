"""The meter: which readings become which phase."""

from __future__ import annotations

from pathlib import Path

from profiler.counters import DeviceReading, Reading, Shortage
from profiler.meter import PhaseMeter, highest
from profiler.record import Counts


def counts(size: int) -> Counts:
    return Counts(requested_bytes=size - 1, allocated_bytes=size, reserved_bytes=2 * size)


class Scripted:
    """Counters that a test moves by hand."""

    shortage: Shortage | None = None

    def __init__(self) -> None:
        self.current = self.peak = 0
        self.marks: list[str] = []

    def go(self, *sizes: int) -> None:
        self.peak = max(self.peak, *sizes)
        self.current = sizes[-1]

    def start(self) -> None: ...

    def synchronize(self) -> None: ...

    def read(self) -> Reading:
        return Reading(counts(self.current), counts(self.peak), retries=0, ooms=0)

    def reset_peaks(self) -> None:
        self.peak = self.current

    def read_device(self) -> DeviceReading:
        return DeviceReading(None, None, None, None)

    def free_workspaces(self) -> int:
        return 0

    def record_history(self) -> None: ...

    def mark(self, name: str) -> None:
        self.marks.append(name)

    def limit(self, size_bytes: int) -> None: ...

    def write_history(self, path: Path) -> None: ...


def meter_of(first_step: int = 0) -> tuple[Scripted, PhaseMeter, list[str]]:
    counters, ended = Scripted(), list[str]()
    return counters, PhaseMeter(counters, first_step, ended.append), ended


def sizes(meter: PhaseMeter) -> dict[str, tuple[int, int, int]]:
    return {
        phase.name: (
            phase.start.allocated_bytes,
            phase.peak.allocated_bytes,
            phase.end.allocated_bytes,
        )
        for phase in meter.phases
    }


def test_generate_is_load_prefill_and_all_of_decode() -> None:
    counters, meter, ended = meter_of()
    counters.go(120, 100)
    meter.step(0)
    meter.phase("prefill")
    counters.go(500, 200)
    for highest_now in (240, 260, 250):
        meter.phase("decode")
        counters.go(highest_now, 210)
    meter.finish()
    assert sizes(meter) == {
        "load": (0, 120, 100),
        "prefill": (100, 500, 200),
        "decode": (200, 260, 210),
    }
    assert ended == ["load", "prefill", "decode"]


def test_steps_before_the_first_measured_one_are_left_out() -> None:
    counters, meter, ended = meter_of(first_step=1)
    counters.go(100)
    for index, top in enumerate((9000, 400, 500)):
        meter.step(index)
        for name in ("forward", "backward"):
            meter.phase(name)
            assert meter.current == name
            counters.go(top, 300)
    meter.finish()
    assert sizes(meter) == {
        "load": (0, 100, 100),
        "forward": (300, 500, 300),
        "backward": (300, 500, 300),
    }
    assert ended == ["load", *2 * ["forward", "backward"]]


def test_micro_batches_join_their_turns() -> None:
    counters, meter, _ = meter_of()
    meter.step(0)
    for start, top in ((10, 50), (20, 40)):
        meter.phase("forward")
        counters.go(start, top)
        meter.phase("backward")
        counters.go(top - 5)
    meter.finish()
    assert sizes(meter)["forward"] == (0, 50, 40)
    assert sizes(meter)["backward"] == (50, 50, 35)


def test_what_happens_between_steps_belongs_to_no_phase() -> None:
    counters, meter, _ = meter_of()
    meter.step(0)
    meter.phase("forward")
    counters.go(10)
    meter.step(1)
    counters.go(999, 10)
    meter.phase("forward")
    counters.go(20)
    meter.finish()
    assert sizes(meter)["forward"] == (0, 20, 20)


def test_the_highest_of_each_counter() -> None:
    one = Counts(requested_bytes=5, allocated_bytes=1, reserved_bytes=7)
    two = Counts(requested_bytes=2, allocated_bytes=9, reserved_bytes=3)
    assert highest([one, two]) == Counts(requested_bytes=5, allocated_bytes=9, reserved_bytes=7)
