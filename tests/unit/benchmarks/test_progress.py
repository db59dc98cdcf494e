"""Progress lines, the bar on a terminal, the summary; what this machine can run."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import machine
from benchmarks.plan import Plan, PlannedCase
from benchmarks.progress import outcome_line, plan_lines, progress, summary_lines
from benchmarks.runner import Fate, Outcome
from benchmarks.selection import SelectionError
from benchmarks.store import CaseKey
from estimator.errors import EnvironmentUnavailable
from estimator.report import Peak
from estimator.units import GIB, MIB
from profiler.nvml import Device
from profiler.record import Record


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def outcome(make: SimpleNamespace, fate: Fate = "ran", record: Record | None = None) -> Outcome:
    case = make.case()
    key = CaseKey(case.case_id, "trace", make.environment_id)
    return Outcome(
        PlannedCase("gpt2-[x]", case, key, Peak("decode", None, 2 * 10**9), record, 0), fate, record
    )


def plan_of(*outcomes: Outcome) -> Plan:
    return Plan("mine", "trace", (), tuple(one.planned for one in outcomes))


def test_a_line_says_status_source_peak_time_and_case(make: SimpleNamespace) -> None:
    done = outcome(make, record=make.record(make.case(), allocated_bytes=1_234_567_890))
    assert outcome_line(done, 3, 14) == (
        "[ 3/14] ok       trace     1.23 GB     1.15 GiB    1.5 s  gpt2-[x]"
    )
    failed = outcome(make, record=make.failure(make.case(), "timeout", "took too long"))
    line = outcome_line(failed, 14, 14)
    assert line.startswith("[14/14] timeout  trace ")
    assert line.endswith("gpt2-[x]: took too long")
    assert outcome_line(outcome(make, "busy"), 1, 2) == "[1/2] busy     trace  gpt2-[x]"


def test_flags_of_a_record_are_shown(make: SimpleNamespace) -> None:
    flagged = make.record(make.case()).with_flags("another process was on the GPU")
    line = outcome_line(outcome(make, record=flagged), 1, 1)
    assert line.endswith("gpt2-[x] (another process was on the GPU)")


def test_a_file_gets_plain_lines(make: SimpleNamespace) -> None:
    stream = io.StringIO()
    one = outcome(make, record=make.record(make.case()))
    with progress(plan_of(one, one), stream, quiet=False) as show:
        show(one)
        show(one)
    lines = stream.getvalue().splitlines()
    assert [line[:6] for line in lines] == ["[1/2] ", "[2/2] "]


def test_a_terminal_gets_a_bar_and_the_lines_unaltered(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    one = outcome(make, record=make.record(make.case()))
    with progress(plan_of(one), stream, quiet=False) as show:
        show(one)
    text = stream.getvalue()
    assert outcome_line(one, 1, 1) in text
    assert "━" in text
    assert "\x1b[3" not in text  # a colour


def test_a_dumb_terminal_gets_plain_lines_and_quiet_nothing(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = outcome(make, record=make.record(make.case()))
    monkeypatch.setenv("TERM", "dumb")
    for quiet, wanted in ((False, outcome_line(one, 1, 1) + "\n"), (True, "")):
        stream = Terminal()
        with progress(plan_of(one), stream, quiet) as show:
            show(one)
        assert stream.getvalue() == wanted


def test_a_plan_is_shown_with_its_needs(make: SimpleNamespace) -> None:
    record = make.record(make.case())
    done, missing = outcome(make, record=record).planned, outcome(make).planned
    unknown = PlannedCase("odd", missing.case, missing.key, None, None, 0, 1, True, True, 90.0)
    lines = list(plan_lines(Plan("mine", "trace", (done,), (missing, unknown))))
    assert lines == [
        "suite mine, source trace: 1 cases in 3 runs, 1 recorded, 2 to run",
        "time: a rough guess is 2 min, one after another",
        "ok          2.00 GB     1.86 GiB  gpt2-[x]",
        "to run      2.00 GB     1.86 GiB  gpt2-[x]",
        "to run               no estimate  odd (alone) (history)",
    ]


def test_a_summary_counts_and_says_what_to_do(make: SimpleNamespace) -> None:
    outcomes = [
        outcome(make, record=make.record(make.case())),
        outcome(make, record=make.failure(make.case())),
        outcome(make, "busy"),
        outcome(make, "no time"),
    ]
    first, *hints = summary_lines(outcomes, Path("out"))
    assert first == "4 cases: 1 ok, 1 error, 1 busy, 1 no time; records in out"
    assert [hint.split(":")[0] for hint in hints] == [
        "some cases failed",
        "the time budget is used up",
        "another run is at the busy cases",
    ]


def test_auto_is_cuda_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_problem", lambda: None)
    assert machine.choose_source("auto") == "cuda"
    monkeypatch.setattr(machine, "cuda_problem", lambda: "no GPU")
    assert machine.choose_source("auto") == "trace"
    with pytest.raises(EnvironmentUnavailable, match=r"no GPU .*--source trace"):
        machine.choose_source("cuda")
    monkeypatch.setattr(machine, "library_version", lambda name: None)
    with pytest.raises(EnvironmentUnavailable, match="torch and transformers not installed"):
        machine.choose_source("auto")


@pytest.mark.parametrize(
    ("total", "used", "capacity"), [(80, 0, 76), (80, 70, 6), (16, 0, 15), (16, 16, 0)]
)
def test_packing_leaves_a_margin_free(
    monkeypatch: pytest.MonkeyPatch, total: int, used: int, capacity: int
) -> None:
    device = Device(total_bytes=total * GIB, used_bytes=used * GIB)
    monkeypatch.setattr(machine, "read_device", lambda: device)
    assert machine.card_capacity_bytes() == capacity * GIB


def test_packing_needs_to_know_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_device", lambda: Device())
    with pytest.raises(EnvironmentUnavailable, match="--jobs 1"):
        machine.card_capacity_bytes()


def test_jobs_are_a_number_or_what_the_machine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_processors", lambda: 24)
    monkeypatch.setattr(machine, "_free_memory_bytes", lambda: 33 * GIB)
    assert [machine.parse_jobs(None, source) for source in ("cuda", "trace")] == [1, 2]
    assert [machine.parse_jobs("auto", source) for source in ("cuda", "trace")] == [8, 22]
    assert machine.parse_jobs("7", "cuda") == 7
    monkeypatch.setattr(machine, "_free_memory_bytes", lambda: None)
    assert machine.parse_jobs("auto", "cuda") == 24
    monkeypatch.setattr(machine, "_free_memory_bytes", lambda: 0)
    assert machine.parse_jobs("auto", "trace") == 1


@pytest.mark.parametrize("text", ["0", "65", "two", "-1", "1.5", "", "\u0663"])
def test_other_jobs_are_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="but must be auto or a whole number from 1 to 64"):
        machine.parse_jobs(text, "trace")


def test_processors_and_memory_are_read() -> None:
    assert 1 <= machine._processors() <= (os.cpu_count() or 1)
    assert (machine._free_memory_bytes() or 0) > 64 * MIB
