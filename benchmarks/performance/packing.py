"""What packing a suite on one card gains: simulated, with scripted workers that only sleep.

python -m benchmarks.performance.packing [SUITE] [--jobs N] [--card GB] [--scale X]

The real plan, queue, runner and store run every case of a suite twice, one after another and
packed. A scripted worker sleeps for the host's share of a case (imports, CUDA context, kernel
launches; `benchmarks.durations` guesses it), then for the GPU's while it holds the one GPU: kernels
of several processes never overlap here, which is the worst case. Nothing is measured on a GPU, and
the gain is as good as those guesses.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from typing import Self

from benchmarks.durations import GPU_START_S, guess_duration
from benchmarks.plan import make_plan
from benchmarks.runner import Limits, run_plan
from benchmarks.store import RecordStore
from benchmarks.suite import Suite, load_suite
from estimator import estimate
from estimator.case import Case
from estimator.errors import UnsupportedError
from estimator.report import Components, MemoryReport, Parameters, Peak
from estimator.units import GB
from profiler.environment import Environment
from profiler.record import Measurement, Provenance, Record
from profiler.requests import AS_USUAL, HowToRun

ENVIRONMENT = Environment(environment_id="0123456789ab", python="3", platform="simulated")
MADE = Provenance(code_version="0", started_at="2026-01-01T00:00:00+00:00", duration_seconds=0.0)


class SimulatedCard:
    """One GPU and what its workers hold of it; fails where they would not fit."""

    def __init__(self, total_bytes: int, scale: float) -> None:
        self.scale = scale
        self.computing = threading.Lock()
        self.most_held_bytes = 0
        self._total_bytes = total_bytes
        self._counting = threading.Lock()
        self._held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Take so many bytes; less than 0 gives them back."""
        with self._counting:
            self._held_bytes += size_bytes
            self.most_held_bytes = max(self.most_held_bytes, self._held_bytes)
            if self._held_bytes > self._total_bytes:
                raise AssertionError("the packed cases do not fit on the card")


class ScriptedWorker:
    """Sleeps as long as a case is guessed to take, and answers with its estimate."""

    def __init__(self, card: SimulatedCard) -> None:
        self._card = card
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def prepare(self) -> None:
        """Start: a fresh process for every case."""
        self._sleep(0.0 if self._ready else GPU_START_S)
        self._ready = True

    def kill(self) -> None:
        """Do nothing: every case ends soon."""

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        """Run a case; its bytes are on the card from the end of the start on."""
        self.prepare()
        duration = guess_duration(case, "cuda")
        report = _report(case)
        self._card.hold(report.peak.allocated_bytes)
        self._sleep(duration.host_s)
        with self._card.computing:
            self._sleep(duration.gpu_s)
        self._card.hold(-report.peak.allocated_bytes)
        self._ready = False
        return Record.from_report(report, ENVIRONMENT, MADE, Measurement())

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds * self._card.scale)


def _report(case: Case) -> MemoryReport:
    try:
        peak_bytes = estimate(case).peak.allocated_bytes
    except UnsupportedError:
        peak_bytes = 0
    return MemoryReport(
        source="cuda",
        case=case.to_dict(),
        parameters=Parameters(0, 0),
        peak=Peak("load", None, peak_bytes),
        phases=(),
        components=Components(unattributed_bytes=peak_bytes),
    )


def simulate(suite: Suite, jobs: int, card_bytes: int, scale: float) -> tuple[float, int]:
    """Run a suite and return the simulated seconds and the most bytes held at once."""
    card = SimulatedCard(card_bytes, scale)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(suite, suite.cases, "cuda", ENVIRONMENT.environment_id, {})
        limits = Limits(jobs=jobs, capacity_bytes=card_bytes if jobs > 1 else None)
        begun = time.monotonic()
        outcomes = run_plan(
            plan, RecordStore(folder), lambda: ScriptedWorker(card), limits, lambda one: None
        )
        seconds = time.monotonic() - begun
    assert all(one.fate == "ran" for one in outcomes)
    return seconds / scale, card.most_held_bytes


def main() -> None:
    """Print the simulated times and the gain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", nargs="?", default="core")
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--card", type=float, default=80.0, help="GB that cases may share")
    parser.add_argument("--scale", type=float, default=0.02, help="seconds slept a simulated one")
    asked = parser.parse_args()
    suite = load_suite(asked.suite)
    card_bytes = int(asked.card * GB)
    alone_s, _ = simulate(suite, 1, card_bytes, asked.scale)
    packed_s, held_bytes = simulate(suite, asked.jobs, card_bytes, asked.scale)
    print(
        f"simulated, not measured: {suite.name}, {len(suite.cases)} cases on {asked.card:g} GB: "
        f"{alone_s / 60:.1f} min one after another, {packed_s / 60:.1f} min with {asked.jobs} jobs "
        f"({alone_s / packed_s:.1f} times faster); at most {held_bytes / GB:.1f} GB held at once"
    )


if __name__ == "__main__":
    main()
