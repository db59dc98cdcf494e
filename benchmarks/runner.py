"""Runs the planned cases in worker processes and stores each record the moment its case ends.

A thread a worker; the main thread only waits, shows progress and handles Ctrl-C. Nothing here
knows what a worker does: tests drive the runner with scripted ones.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from benchmarks.case_queue import CaseQueue
from benchmarks.plan import FAILED, Plan, PlannedCase
from benchmarks.store import RecordStore
from estimator.case import Case
from profiler.record import Record
from profiler.repeats import flag_if_unequal
from profiler.requests import AS_USUAL, HowToRun


class CaseWorker(Protocol):
    """Runs one case at a time and answers with a record, whatever happens to its process."""

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        """Run a case and return its record; status `timeout` after `timeout_s` seconds."""
        ...

    def prepare(self) -> None:
        """Get ready for a case, without taking anything of the card."""
        ...

    def kill(self) -> None:
        """End the worker's processes for good, from any thread; a `run` under way returns."""
        ...


WorkerFactory = Callable[[], AbstractContextManager[CaseWorker]]

_LEAST_TIMEOUT_S = 1.0

Fate = Literal["recorded", "ran", "elsewhere", "busy", "no time"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case.

    `recorded` before this run, `ran` in it, recorded `elsewhere` meanwhile by another runner;
    without a record: another runner is at it (`busy`), or the time was too short (`no time`). A
    case that failed beside others has no outcome yet: it is run again alone.
    """

    planned: PlannedCase
    fate: Fate
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once and how long. `timeout_s` is for one case, `time_budget_s` for all."""

    jobs: int = 1
    capacity_bytes: int | None = None
    timeout_s: float = 600.0
    time_budget_s: float | None = None
    first_guess_s: float = 0.0


def run_plan(
    plan: Plan,
    store: RecordStore,
    make_worker: WorkerFactory,
    limits: Limits,
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run what is to be run; return an outcome for each case, those without time included.

    `on_outcome` is called in this thread as each case ends, after its record is on the disk.

    Raises:
        RecordError: when a record cannot be written; everything is stopped then.
        KeyboardInterrupt: after every worker is gone. Records written so far stay.
    """
    cases = CaseQueue(
        plan.to_run, limits.capacity_bytes, limits.time_budget_s, limits.first_guess_s
    )
    crew = _Crew(store, make_worker, limits, cases)
    outcomes: list[Outcome] = []
    try:
        crew.start(min(limits.jobs, len(plan.to_run)))
        while (outcome := crew.next_outcome()) is not None:
            outcomes.append(outcome)
            on_outcome(outcome)
    finally:
        crew.stop()
    return outcomes + [Outcome(planned, "no time") for planned in cases.not_started()]


class _Crew:
    """The threads, each with a worker of its own."""

    def __init__(
        self, store: RecordStore, make_worker: WorkerFactory, limits: Limits, cases: CaseQueue
    ) -> None:
        self._store = store
        self._make_worker = make_worker
        self._limits = limits
        self._cases = cases
        self._threads: list[threading.Thread] = []
        self._workers: list[CaseWorker] = []
        self._at_work = 0
        # An exception ends the run; None says that one thread has nothing left to do.
        self._answers: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()

    def start(self, count: int) -> None:
        for number in range(count):
            thread = threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            self._threads.append(thread)
            self._at_work += 1
            thread.start()

    def next_outcome(self) -> Outcome | None:
        """Return the next outcome; None when all threads are done. Raises what they raised."""
        while self._at_work:
            answer = self._answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                return answer
            self._at_work -= 1
        return None

    def stop(self) -> None:
        """End what is under way, if anything is, and wait for the threads."""
        self._cases.stop()
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            with self._make_worker() as worker:
                self._workers.append(worker)
                while (planned := self._take(worker)) is not None:
                    outcome = self._run(worker, planned)
                    if outcome is not None:
                        self._answers.put(outcome)
        except BaseException as error:
            self._answers.put(error)
        else:
            self._answers.put(None)

    def _take(self, worker: CaseWorker) -> PlannedCase | None:
        """Return the next case that may start; while it waits for room the worker gets ready."""
        if self._cases.not_started():
            worker.prepare()
        return self._cases.take()

    def _run(self, worker: CaseWorker, planned: PlannedCase) -> Outcome | None:
        start = time.monotonic()
        try:
            with self._store.claim(planned.key) as claimed:
                if not claimed:
                    return Outcome(planned, "busy")
                recorded = self._store.of_case(planned.key)
                if len(recorded) >= planned.wanted:
                    return Outcome(planned, "elsewhere", recorded[-1])
                return self._run_claimed(worker, planned, recorded)
        finally:
            self._cases.finished(planned, time.monotonic() - start)

    def _run_claimed(
        self, worker: CaseWorker, planned: PlannedCase, earlier: Sequence[Record]
    ) -> Outcome | None:
        left_s = self._cases.seconds_left()
        timeout_s = self._limits.timeout_s
        if left_s is not None:
            timeout_s = min(timeout_s, max(left_s, _LEAST_TIMEOUT_S))
        repeat = self._store.next_repeat(planned.key)
        shares = self._cases.shares(planned)
        path = self._store.path(planned.case, planned.key, repeat)
        how = HowToRun(
            repeat=repeat,
            loop=planned.key.loop,
            snapshot=path.with_suffix(".pickle") if planned.history else None,
            share_bytes=planned.share_bytes if shares else None,
        )
        record = worker.run(planned.case, timeout_s, how)
        if record.status in FAILED and self._cases.stopped:
            return None  # It failed because we stopped it, which says nothing of the case.
        if record.status == "timeout" and timeout_s < self._limits.timeout_s:
            return Outcome(planned, "no time")  # The budget ended, not the case's own limit.
        if shares and not _is_its_own(record):
            self._cases.run_alone(planned)
            return None
        record = flag_if_unequal(record, earlier)
        self._store.write(record, planned.key, repeat)
        return Outcome(planned, "ran", record)


def _is_its_own(record: Record) -> bool:
    """Whether a run that shared the card says what it would say alone.

    Its allocator is held to its share, so that a wrong prediction costs this case and no other: it
    runs out or retries where the whole card might have been enough; and others slow it down.
    """
    measured = record.measurement
    return record.status == "ok" and (measured is None or measured.allocator_retries == 0)
