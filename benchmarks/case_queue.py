"""Hands out cases to threads: in order, what fits on the card now, while there is time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from benchmarks.plan import PlannedCase


class CaseQueue:
    """Cases waiting to be run, shared by the threads that run them.

    `capacity_bytes` is what may be in use at once by the sum of `need_bytes`; None packs nothing
    and limits nothing. A case without a prediction, or one above the capacity, runs alone.
    `time_budget_s` is counted from now; a case starts only if as long as the longest one so far
    (`first_guess_s` before there is one) is left.
    """

    def __init__(
        self,
        cases: Sequence[PlannedCase],
        capacity_bytes: int | None = None,
        time_budget_s: float | None = None,
        first_guess_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = list(cases)
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self._deadline = None if time_budget_s is None else clock() + time_budget_s
        self._longest_s = 0.0
        self._first_guess_s = first_guess_s
        self._running: list[PlannedCase] = []
        self._stopped = False
        self._changed = threading.Condition()

    def take(self) -> PlannedCase | None:
        """Return the next case that may start, waiting for room; None when there is no more."""
        with self._changed:
            while True:
                if self._stopped or not self._waiting or not self._has_time():
                    return None
                for index, candidate in enumerate(self._waiting):
                    if self._fits(candidate):
                        self._running.append(self._waiting.pop(index))
                        return candidate
                self._changed.wait()

    def finished(self, planned: PlannedCase, seconds: float) -> None:
        """Say that a case that `take` gave out has ended, after so many seconds."""
        with self._changed:
            self._running.remove(planned)
            self._longest_s = max(self._longest_s, seconds)
            self._changed.notify_all()

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def seconds_left(self) -> float | None:
        """Return what is left of the time budget, at least 0; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def not_started(self) -> tuple[PlannedCase, ...]:
        """Return the cases that were not given out."""
        with self._changed:
            return tuple(self._waiting)

    def _has_time(self) -> bool:
        left = self.seconds_left()
        return left is None or left >= (self._longest_s or self._first_guess_s)

    def _fits(self, candidate: PlannedCase) -> bool:
        if self._capacity_bytes is None or not self._running:
            return True
        needs = [planned.need_bytes for planned in (*self._running, candidate)]
        known = [need for need in needs if need is not None]
        return len(known) == len(needs) and sum(known) <= self._capacity_bytes
