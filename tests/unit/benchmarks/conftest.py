"""Reports, records and workers made of nothing but arithmetic: no torch, no processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest

from estimator.case import Case
from estimator.report import Components, MemoryReport, Parameters, Peak, Phase
from profiler.environment import Environment
from profiler.record import Provenance, Record
from profiler.requests import AS_USUAL, HowToRun

ENVIRONMENT_ID = "0123456789ab"


def make_case(**fields: Any) -> Case:
    return Case.from_dict({"model": "openai-community/gpt2", "sequence_length": 64, **fields})


def make_report(
    case: Case, allocated_bytes: int = 10**9, source: str = "trace", **peak: Any
) -> MemoryReport:
    return MemoryReport(
        source=source,
        case=case.to_dict(),
        parameters=Parameters(1000, 1000),
        peak=Peak(
            phase="decode",
            requested_bytes=peak.get("requested_bytes", allocated_bytes - 1000),
            allocated_bytes=allocated_bytes,
            reserved_bytes=peak.get("reserved_bytes"),
        ),
        phases=(Phase("decode", allocated_bytes, allocated_bytes),),
        components=Components(
            weights_bytes=allocated_bytes // 2, unattributed_bytes=-(-allocated_bytes // 2)
        ),
    )


def make_environment(environment_id: str = ENVIRONMENT_ID, torch: str = "2.13.0") -> Environment:
    return Environment(
        environment_id=environment_id, torch=torch, python="3.11.9", platform="Linux-x86_64"
    )


def make_provenance(repeat: int = 1, started_at: str = "2026-01-01T00:00:00+00:00") -> Provenance:
    return Provenance(
        code_version="1", dirty=False, started_at=started_at, duration_seconds=1.5, repeat=repeat
    )


def make_record(
    case: Case,
    allocated_bytes: int = 10**9,
    source: str = "trace",
    environment: Environment | None = None,
    repeat: int = 1,
    **peak: Any,
) -> Record:
    return Record.from_report(
        make_report(case, allocated_bytes, source, **peak),
        environment or make_environment(),
        make_provenance(repeat),
    )


def make_failure(case: Case, status: Any = "error", message: str = "it broke") -> Record:
    return Record.failed(
        case, "trace", status, message, make_environment(), make_provenance(), kind="exit"
    )


class FakeWorker:
    """Answers with what `answer` returns; `kill` is seen by whoever waits for `killed`."""

    def __init__(self, answer: Callable[[Case], Record]) -> None:
        self.answer = answer
        self.asked: list[HowToRun] = []
        self.killed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        self.asked.append(how)
        return self.answer(case)

    def prepare(self) -> None:
        return None

    def kill(self) -> None:
        self.killed.set()


MAKE = SimpleNamespace(
    case=make_case,
    report=make_report,
    environment=make_environment,
    record=make_record,
    failure=make_failure,
    worker=FakeWorker,
    environment_id=ENVIRONMENT_ID,
)


@pytest.fixture
def make() -> SimpleNamespace:
    """Return the functions above: test modules cannot import this one."""
    return MAKE


@pytest.fixture
def fake_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every planned case need 1 GB, whatever the formulas say of it."""
    monkeypatch.setattr(
        "benchmarks.needs.estimate", lambda case: make_report(case, 10**9, "architecture")
    )
