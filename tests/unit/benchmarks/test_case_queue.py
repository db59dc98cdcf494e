"""The queue: order, packing under the card's capacity, the time budget."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.case_queue import CaseQueue
from benchmarks.plan import CONTEXT_BYTES, PlannedCase
from benchmarks.store import CaseKey
from estimator.case import Case
from estimator.report import Peak
from estimator.units import GIB, MIB

CASE = Case.from_dict({"model": "gpt2"})


def planned(
    name: str, peak_bytes: int | None, reserved_bytes: int | None = None, alone: bool = False
) -> PlannedCase:
    peak = None if peak_bytes is None else Peak("decode", None, peak_bytes, reserved_bytes)
    return PlannedCase(name, CASE, CaseKey(name, "cuda", "e"), peak, None, 0, alone=alone)


def test_without_capacity_the_order_is_kept() -> None:
    cases = [planned(str(number), number) for number in range(5)]
    queue = CaseQueue(cases)
    taken = [queue.take() for _ in range(6)]
    assert taken == [*cases, None]


def test_a_need_is_the_prediction_with_room_to_fragment_and_a_context() -> None:
    share = planned("a", 10 * GIB).share_bytes
    assert share == 12 * GIB + 512 * MIB
    assert planned("a", 10 * GIB).need_bytes == share + CONTEXT_BYTES
    # Where what is reserved is predicted, that counts.
    assert planned("a", 10 * GIB, 20 * GIB).share_bytes == 21 * GIB + 512 * MIB
    assert planned("a", 10 * GIB, 11 * GIB).share_bytes == share
    assert planned("a", None).need_bytes is None


def test_a_small_case_overtakes_one_that_does_not_fit_now() -> None:
    big, huge, small = planned("big", 50 * GIB), planned("huge", 60 * GIB), planned("s", GIB)
    queue = CaseQueue([big, huge, small], capacity_bytes=70 * GIB)
    assert queue.take() == big
    assert queue.take() == small
    queue.finished(big, 1)
    queue.finished(small, 1)
    assert queue.take() == huge


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 120 * GIB)), max_size=12),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_packed_cases_never_exceed_the_card_and_all_get_their_turn(
    peaks: list[int | None], jobs: int, order: SimpleNamespace
) -> None:
    capacity = 80 * GIB
    queue = CaseQueue([planned(str(n), peak) for n, peak in enumerate(peaks)], capacity)
    running: list[PlannedCase] = []
    done: list[str] = []
    while len(done) < len(peaks):
        # A thread that would have to wait is not started: `take` blocks only if others run.
        while len(running) < jobs and any(queue._fits(one) for one in queue.not_started()):
            taken = queue.take()
            assert taken is not None
            running.append(taken)
            needs = [one.need_bytes for one in running]
            known = [need for need in needs if need is not None]
            assert len(running) == 1 or (len(known) == len(needs) and sum(known) <= capacity)
        ended = running.pop(order.randrange(len(running)))
        queue.finished(ended, 1.0)
        done.append(ended.id)
    assert sorted(done) == sorted(str(n) for n in range(len(peaks)))


def test_take_waits_for_room_and_stop_wakes_it() -> None:
    queue = CaseQueue([planned("a", 60 * GIB), planned("b", 60 * GIB)], capacity_bytes=70 * GIB)
    first = queue.take()
    got: list[PlannedCase | None] = []
    waiting = threading.Thread(target=lambda: got.append(queue.take()))
    waiting.start()
    time.sleep(0.05)
    assert got == []
    assert first is not None
    queue.finished(first, 1.0)
    waiting.join(5)
    assert [one.id for one in got if one] == ["b"]
    blocked = threading.Thread(target=lambda: got.append(queue.take()))
    queue = CaseQueue([planned("a", 60 * GIB), planned("b", 60 * GIB)], capacity_bytes=70 * GIB)
    queue.take()
    blocked.start()
    queue.stop()
    blocked.join(5)
    assert got[-1] is None
    assert [one.id for one in queue.not_started()] == ["b"]


def test_nothing_starts_that_would_not_finish() -> None:
    now = [0.0]
    cases = [planned(str(number), 1) for number in range(9)]
    queue = CaseQueue(cases, time_budget_s=100, first_guess_s=30, clock=lambda: now[0])
    for seconds in (10, 40, 35):
        taken = queue.take()
        assert taken is not None
        now[0] += seconds
        queue.finished(taken, seconds)
    # 15 s are left and the longest case took 40.
    assert queue.seconds_left() == 15
    assert queue.take() is None
    assert len(queue.not_started()) == 6


def test_a_budget_below_the_first_guess_starts_nothing() -> None:
    queue = CaseQueue([planned("a", 1)], time_budget_s=5, first_guess_s=30)
    assert queue.take() is None


def test_the_largest_that_fits_goes_first_and_what_is_alone_comes_last() -> None:
    capacity = 80 * GIB
    small, large, middle = planned("s", GIB), planned("l", 50 * GIB), planned("m", 10 * GIB)
    unknown, huge = planned("u", None), planned("h", 79 * GIB)
    asked = planned("a", 2 * GIB, alone=True)
    queue = CaseQueue([asked, unknown, small, huge, large, middle], capacity)
    taken = [queue.take() for _ in range(3)]
    assert taken == [large, middle, small]
    assert [queue.shares(one) for one in (large, asked, unknown, huge)] == [True] + 3 * [False]
    for one in (large, middle, small):
        queue.finished(one, 1.0)
    rest = []
    for _ in range(3):
        alone = queue.take()
        assert alone is not None
        rest.append(alone.id)
        assert not any(queue._fits(other) for other in queue.not_started())
        queue.finished(alone, 1.0)
    assert sorted(rest) == ["a", "h", "u"]


def test_nothing_shares_where_nothing_is_packed() -> None:
    assert not CaseQueue([planned("a", GIB)]).shares(planned("a", GIB))


def test_a_case_that_is_run_again_comes_when_it_has_the_card_to_itself() -> None:
    first, second = planned("1", 30 * GIB), planned("2", 20 * GIB)
    queue = CaseQueue([first, second], 80 * GIB)
    assert [queue.take(), queue.take()] == [first, second]
    queue.run_alone(first)
    queue.finished(first, 1.0)
    (again,) = queue.not_started()
    assert (again.id, again.alone, queue.shares(again)) == ("1", True, False)
    assert not queue._fits(again)
    queue.finished(second, 1.0)
    assert queue.take() == again


def test_two_runs_of_one_case_are_never_at_work_together() -> None:
    once, twice = planned("same", GIB), replace(planned("same", GIB), repeats=1)
    for capacity in (None, 80 * GIB):
        queue = CaseQueue([once, twice], capacity)
        assert queue.take() == once
        assert not queue._fits(twice)
        queue.finished(once, 1.0)
        assert queue.take() == twice


def test_a_case_that_is_guessed_to_take_too_long_is_passed_over() -> None:
    long, short = replace(planned("l", 1), seconds=90.0), replace(planned("s", 1), seconds=20.0)
    queue = CaseQueue([long, short], time_budget_s=60, first_guess_s=10, clock=lambda: 0.0)
    assert queue.take() == short
    assert queue.take() is None
    assert queue.not_started() == (long,)
