"""Hands out cases to threads: what fits on the card now, while there is time.

Without a card to share the suite's order is kept. On one, the case that needs most of what is free
goes first, because small ones fill the gaps that are left; those that need the card to themselves
come last, when nothing is kept waiting for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.plan import PlannedCase


class CaseQueue:
    """Cases waiting to be run, shared by the threads that run them.

    `capacity_bytes` is what may be in use at once by the sum of `need_bytes`; None packs nothing
    and limits nothing. A case that asks for it, has no prediction, or needs more than the capacity
    runs alone. Two runs of one case never run at once, so that their repeats keep their numbers.
    `time_budget_s` is counted from now; a case starts only if as long as the longest one so far
    (`first_guess_s` before there is one) is left, and as long as it is itself guessed to take.
    """

    def __init__(
        self,
        cases: Sequence[PlannedCase],
        capacity_bytes: int | None = None,
        time_budget_s: float | None = None,
        first_guess_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._waiting = sorted(cases, key=self._turn)
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
                if self._stopped or not any(map(self._has_time, self._waiting)):
                    return None
                for index, candidate in enumerate(self._waiting):
                    if self._has_time(candidate) and self._fits(candidate):
                        self._running.append(self._waiting.pop(index))
                        return candidate
                self._changed.wait()

    def finished(self, planned: PlannedCase, seconds: float) -> None:
        """Say that a case that `take` gave out has ended, after so many seconds."""
        with self._changed:
            self._running.remove(planned)
            self._longest_s = max(self._longest_s, seconds)
            self._changed.notify_all()

    def run_alone(self, planned: PlannedCase) -> None:
        """Give out a case once more, when it has the card to itself."""
        with self._changed:
            self._waiting.append(replace(planned, alone=True))
            self._changed.notify_all()

    def shares(self, planned: PlannedCase) -> bool:
        """Whether a case may have others beside it on the card."""
        need = planned.need_bytes
        capacity = self._capacity_bytes
        return capacity is not None and not planned.alone and need is not None and need <= capacity

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

    def _has_time(self, candidate: PlannedCase) -> bool:
        left = self.seconds_left()
        longest_s = self._longest_s or self._first_guess_s
        return left is None or left >= max(longest_s, candidate.seconds)

    def _turn(self, planned: PlannedCase) -> tuple[bool, int]:
        """Return what cases are sorted by."""
        if self._capacity_bytes is None:
            return False, 0
        return not self.shares(planned), -(planned.need_bytes or 0)

    def _fits(self, candidate: PlannedCase) -> bool:
        if any(planned.key == candidate.key for planned in self._running):
            return False
        if self._capacity_bytes is None or not self._running:
            return True
        if not all(map(self.shares, (*self._running, candidate))):
            return False
        return self._needed(candidate) + sum(map(self._needed, self._running)) <= (
            self._capacity_bytes
        )

    @staticmethod
    def _needed(planned: PlannedCase) -> int:
        return planned.need_bytes or 0
