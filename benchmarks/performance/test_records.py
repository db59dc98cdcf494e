"""Records by the thousand: `pytest benchmarks/performance/test_records.py` (pytest-benchmark).

To be met: 10 000 records read and compared in under 2 s; the runner's own cost under 50 ms a case,
beside the worker.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks.compare import compare_records
from benchmarks.plan import make_plan
from benchmarks.runner import Limits, run_plan
from benchmarks.sides import read_side
from benchmarks.store import RecordStore
from benchmarks.suite import Suite, SuiteCase
from estimator import estimate
from estimator.case import Case
from profiler.environment import Environment
from profiler.record import Provenance, Record
from profiler.requests import AS_USUAL, HowToRun

RECORDS = 10_000
RUNS = 50

ENVIRONMENT = Environment(
    environment_id="0123456789ab", torch="2.13.0", python="3.11.9", platform="Linux-x86_64"
)
MADE = Provenance(code_version="0", started_at="2026-01-01T00:00:00+00:00", duration_seconds=1.0)


def cases(count: int, new_tokens: int = 128) -> list[Case]:
    """Return so many different cases."""
    shapes = itertools.product(range(1, 101), range(64, 64 + 64 * 100, 64))
    return [
        Case("openai-community/gpt2", batch_size=batch, sequence_length=length, max_new_tokens=new)
        for batch, length, new in (
            (*shape, new_tokens) for shape in itertools.islice(shapes, count)
        )
    ]


class Answering:
    """A worker that answers every case at once with one report, as if it had been traced."""

    def __init__(self) -> None:
        self._report = estimate(Case("openai-community/gpt2"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        """Return a record of the case."""
        report = self._report
        return Record(
            source="trace",
            status="ok",
            case=case.to_dict(),
            parameters=report.parameters,
            peak=report.peak,
            phases=report.phases,
            components=report.components,
            assumptions=report.assumptions,
            environment=ENVIRONMENT,
            provenance=MADE,
        )

    def prepare(self) -> None:
        """Do nothing: it is ready."""

    def kill(self) -> None:
        """Do nothing: no case takes time."""


def run_all(store: RecordStore, chosen: list[Case]) -> None:
    """Run cases with the real runner and the worker above."""
    suite = Suite("many", "", tuple(SuiteCase(case.case_id, case) for case in chosen))
    plan = make_plan(suite, suite.cases, "trace", ENVIRONMENT.environment_id, {})
    outcomes = run_plan(plan, store, Answering, Limits(), lambda outcome: None)
    assert [outcome.fate for outcome in outcomes] == ["ran"] * len(chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 10 000 records."""
    made = tmp_path_factory.mktemp("records")
    worker = Answering()
    for case in cases(RECORDS):
        name = f"gpt2-{case.case_id}-trace-{ENVIRONMENT.environment_id}-r1.json"
        text = worker.run(case).to_json(indent=1) + "\n"
        (made / name).write_text(text, encoding="utf-8")
    return made


def test_many_records_are_read_and_compared(benchmark: Any, folder: Path) -> None:
    def compare() -> int:
        side = read_side(str(folder))
        return len(compare_records(side, side).rows)

    assert benchmark.pedantic(compare, rounds=3) == RECORDS


def test_the_runner_beside_its_worker(benchmark: Any, folder: Path) -> None:
    """The whole of 50 cases in a folder that holds 10 000: under 2.5 s for 50 ms a case."""
    store = RecordStore(folder)
    rounds = itertools.count(200)
    fresh = [cases(RUNS, next(rounds)) for _ in range(3)]
    benchmark.pedantic(lambda: run_all(store, fresh.pop()), rounds=3)
