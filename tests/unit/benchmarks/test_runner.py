"""The runner under faults, with scripted workers: no case lost, none run twice, nobody left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.plan import Plan, PlannedCase
from benchmarks.runner import Limits, Outcome, run_plan
from benchmarks.store import CaseKey, RecordStore
from estimator.case import Case
from estimator.errors import RecordError
from estimator.report import Peak
from profiler.record import TRAINER_LOOP, Measurement, Record
from profiler.requests import AS_USUAL, HowToRun
from profiler.workers import Worker

SCRIPTED = r"""
import json, os, signal, sys, time

def report(request):
    case = request["case"]
    peak = 1000 * case["batch_size"]
    return {
        "schema_version": 1, "source": request["source"], "status": "ok", "case": case,
        "parameters": {"total": 1, "trainable": 1},
        "peak": {"phase": "decode", "requested_bytes": None, "allocated_bytes": peak},
        "components": {"weights_bytes": peak},
    }

for line in sys.stdin:
    request = json.loads(line)
    batch = request["case"]["batch_size"]
    with open(sys.argv[1], "a") as log:
        log.write(f"{batch}\n")
    fault = sys.argv[2] if str(batch) == sys.argv[3] else None
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hangs":
        time.sleep(600)
    if fault == "exits 0":
        sys.exit(0)
    answer = "garbage {" if fault == "garbage" else json.dumps(report(request))
    if fault == "slow":
        time.sleep(float(sys.argv[4]))
    os.write(int(os.environ["GPUMEM_RECORD_FD"]), answer.encode() + b"\n")
"""


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    made = RecordStore(tmp_path / "records")
    made.prepare()
    return made


def plan_of(make: SimpleNamespace, count: int) -> Plan:
    cases = [make.case(batch_size=size) for size in range(1, count + 1)]
    planned = tuple(
        PlannedCase(
            f"case-{case.batch_size}",
            case,
            CaseKey(case.case_id, "trace", make.environment_id),
            Peak("decode", None, 1000),
            None,
            0,
        )
        for case in cases
    )
    return Plan("scripted", "trace", (), planned)


def run_fakes(
    plan: Plan,
    store: RecordStore,
    make: SimpleNamespace,
    answer: Callable[[Case], Record],
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    **limits: Any,
) -> list[Outcome]:
    return run_plan(plan, store, lambda: make.worker(answer), Limits(**limits), on_outcome)


def test_every_case_is_run_and_recorded_before_it_is_told(
    store: RecordStore, make: SimpleNamespace
) -> None:
    plan = plan_of(make, 7)
    on_disk: list[int] = []
    outcomes = run_fakes(
        plan,
        store,
        make,
        make.record,
        on_outcome=lambda outcome: on_disk.append(len(store.of_case(outcome.planned.key))),
        jobs=3,
    )
    assert Counter(outcome.fate for outcome in outcomes) == {"ran": 7}
    assert on_disk == [1] * 7
    assert len(store.read().records) == 7


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    store: RecordStore, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls: list[int] = []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # a file and its folder: two records fit
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(RecordError, match="no space left on device"):
        run_fakes(plan_of(make, 5), store, make, make.record)
    monkeypatch.undo()
    found = store.read()
    assert (len(found.records), found.problems) == (2, ())


def test_a_case_that_another_runner_has_is_left_to_it(
    store: RecordStore, make: SimpleNamespace
) -> None:
    plan = plan_of(make, 3)
    with store.claim(plan.to_run[1].key):
        outcomes = run_fakes(plan, store, make, make.record)
    assert [outcome.fate for outcome in outcomes] == ["ran", "busy", "ran"]


def test_a_case_that_was_recorded_meanwhile_is_not_run_again(
    store: RecordStore, make: SimpleNamespace
) -> None:
    plan = plan_of(make, 3)
    theirs = make.record(plan.to_run[2].case, allocated_bytes=77)
    store.write(theirs, plan.to_run[2].key)
    outcomes = run_fakes(plan, store, make, make.record)
    assert [outcome.fate for outcome in outcomes] == ["ran", "ran", "elsewhere"]
    assert outcomes[2].record == theirs


def test_two_runners_on_one_folder_run_every_case_once(
    store: RecordStore, make: SimpleNamespace
) -> None:
    plan = plan_of(make, 30)
    ran: list[int] = []

    def answer(case: Case) -> Record:
        ran.append(case.batch_size)
        time.sleep(0.002)
        record: Record = make.record(case)
        return record

    runners = [
        threading.Thread(target=lambda: run_fakes(plan, store, make, answer, jobs=2))
        for _ in range(2)
    ]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert sorted(ran) == list(range(1, 31))
    assert len(store.read().records) == 30


def test_interrupting_kills_the_workers_and_keeps_what_is_done(
    store: RecordStore, make: SimpleNamespace
) -> None:
    workers: list[Any] = []

    def make_worker() -> Any:
        worker = make.worker(None)

        def answer(case: Case) -> Record:
            if case.batch_size <= 2:
                record: Record = make.record(case)
                return record
            assert worker.killed.wait(10)
            failure: Record = make.failure(case)
            return failure

        worker.answer = answer
        workers.append(worker)
        return worker

    done: list[Outcome] = []

    def interrupt(outcome: Outcome) -> None:
        done.append(outcome)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan_of(make, 6), store, make_worker, Limits(jobs=2), interrupt)
    assert all(worker.killed.is_set() for worker in workers)
    # What failed because it was stopped is no result, and is not recorded as one.
    assert [stored.record.status for stored in store.read().records] == ["ok", "ok"]


def test_a_timeout_of_the_budget_is_not_recorded_as_the_cases(
    store: RecordStore, make: SimpleNamespace
) -> None:
    limits: list[float] = []

    class Slow(make.worker):  # type: ignore[misc, name-defined]
        def run(
            self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL
        ) -> Record:
            assert timeout_s is not None
            limits.append(timeout_s)
            failure: Record = make.failure(case, "timeout")
            return failure

    outcomes = run_plan(
        plan_of(make, 1),
        store,
        lambda: Slow(make.record),
        Limits(timeout_s=600, time_budget_s=30),
        lambda outcome: None,
    )
    assert 1 <= limits[0] <= 30
    assert [outcome.fate for outcome in outcomes] == ["no time"]
    assert store.read().records == ()


def test_without_time_nothing_starts(store: RecordStore, make: SimpleNamespace) -> None:
    outcomes = run_fakes(
        plan_of(make, 3), store, make, make.record, time_budget_s=5, first_guess_s=20
    )
    assert [outcome.fate for outcome in outcomes] == ["no time"] * 3


class Card(AbstractContextManager["Card"]):
    """A GPU of `total` bytes and the workers on it: what they hold at once, and what fails."""

    def __init__(self, make: SimpleNamespace, answer: Callable[[Case, HowToRun], Record]) -> None:
        self.make, self.answer = make, answer
        self.asked: list[tuple[int, HowToRun]] = []
        self.held = self.most_held = 0
        self.lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        return None

    def prepare(self) -> None:
        return None

    def kill(self) -> None:
        return None

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        need = how.share_bytes or 0
        with self.lock:
            self.asked.append((case.batch_size, how))
            self.held += need
            self.most_held = max(self.held, self.most_held)
        time.sleep(0.002)
        with self.lock:
            self.held -= need
        return self.answer(case, how)


def test_packed_cases_are_held_to_their_shares_and_stay_within_the_card(
    store: RecordStore, make: SimpleNamespace
) -> None:
    plan = plan_of(make, 12)
    need = plan.to_run[0].need_bytes
    assert need is not None
    card = Card(make, lambda case, how: make.record(case))
    limits = Limits(jobs=6, capacity_bytes=3 * need)
    outcomes = run_plan(plan, store, lambda: card, limits, lambda outcome: None)
    assert Counter(outcome.fate for outcome in outcomes) == {"ran": 12}
    assert {how.share_bytes for _, how in card.asked} == {plan.to_run[0].share_bytes}
    assert 0 < card.most_held <= 3 * need


@pytest.mark.parametrize("trouble", ["oom", "error", "timeout", "retries"])
def test_what_fails_beside_others_is_run_again_alone_before_it_counts(
    store: RecordStore, make: SimpleNamespace, trouble: str
) -> None:
    def answer(case: Case, how: HowToRun) -> Record:
        record: Record = make.record(case)
        if case.batch_size == 2 and how.share_bytes is not None:
            if trouble != "retries":
                failure: Record = make.failure(case, trouble)
                return failure
            return record.model_copy(update={"measurement": Measurement(allocator_retries=1)})
        return record

    card = Card(make, answer)
    plan = plan_of(make, 5)
    limits = Limits(jobs=3, capacity_bytes=10**12)
    outcomes = run_plan(plan, store, lambda: card, limits, lambda outcome: None)
    assert sorted(outcome.planned.case.batch_size for outcome in outcomes) == [1, 2, 3, 4, 5]
    records = [stored.record for stored in store.read().records]
    assert [record.status for record in records] == ["ok"] * 5
    assert all(record.measurement is None for record in records)
    again = [how.share_bytes for size, how in card.asked if size == 2]
    assert len(again) == 2
    assert again[1] is None
    assert card.asked[-1][0] == 2
    assert [how.repeat for _, how in card.asked] == [1] * 6


def test_repeats_are_all_made_where_one_had_to_be_run_again(
    store: RecordStore, make: SimpleNamespace
) -> None:
    def answer(case: Case, how: HowToRun) -> Record:
        record: Record = make.failure(case, "oom") if how.share_bytes else make.record(case)
        return record

    (planned,) = plan_of(make, 1).to_run
    runs = tuple(replace(planned, repeats=number, wanted=3) for number in range(3))
    limits = Limits(jobs=2, capacity_bytes=10**12)
    card = Card(make, answer)
    outcomes = run_plan(Plan("s", "trace", (), runs), store, lambda: card, limits, print)
    assert [outcome.fate for outcome in outcomes] == ["ran"] * 3
    assert len(store.of_case(planned.key)) == 3


def test_a_repeat_that_differs_is_flagged_in_its_record(
    store: RecordStore, make: SimpleNamespace
) -> None:
    sizes = iter([1000, 1000, 1512])
    (planned,) = plan_of(make, 1).to_run
    key = replace(planned.key, source="cuda")
    runs = tuple(replace(planned, key=key, repeats=number, wanted=3) for number in range(3))

    def answer(case: Case, how: HowToRun) -> Record:
        record: Record = make.record(case, next(sizes), source="cuda", repeat=how.repeat)
        return record

    card = Card(make, answer)
    run_plan(Plan("s", "cuda", (), runs), store, lambda: card, Limits(), lambda outcome: None)
    assert [record.flags for record in store.of_case(key)] == [
        (),
        (),
        ("it differs from repeat 1: peak allocated by 512 B",),
    ]


def test_out_of_memory_alone_is_a_result(store: RecordStore, make: SimpleNamespace) -> None:
    card = Card(make, lambda case, how: make.failure(case, "oom"))
    limits = Limits(jobs=2, capacity_bytes=10**12)
    outcomes = run_plan(plan_of(make, 2), store, lambda: card, limits, lambda outcome: None)
    assert [outcome.record and outcome.record.status for outcome in outcomes] == ["oom", "oom"]
    assert len(card.asked) == 4


def test_what_a_suite_asks_for_reaches_the_worker(
    store: RecordStore, make: SimpleNamespace
) -> None:
    (planned,) = plan_of(make, 1).to_run
    key = replace(planned.key, source="cuda")
    trainer = replace(key, loop=TRAINER_LOOP)
    runs = (
        replace(planned, key=key, wanted=2, alone=True, history=True),
        replace(planned, key=key, wanted=2, repeats=1),
        replace(planned, key=trainer),
    )
    card = Card(make, lambda case, how: make.record(case, source="cuda"))
    limits = Limits(jobs=1, capacity_bytes=10**12)
    plan = Plan("scripted", "cuda", (), runs)
    run_plan(plan, store, lambda: card, limits, lambda outcome: None)
    asked = {(how.loop, how.repeat): how for _, how in card.asked}
    assert set(asked) == {("own", 1), ("own", 2), ("trainer", 1)}
    # The one that is to be alone waited for the other: numbers are given as the runs begin.
    assert asked["own", 2].share_bytes is None
    assert asked["own", 1].share_bytes == planned.share_bytes
    names = sorted(path.name for path in store.folder.glob("*.json"))
    stem = f"gpt2-{key.case_id}-cuda-{key.environment_id}"
    assert names == [f"{stem}-r1.json", f"{stem}-r2.json", f"{stem}-trainer-r1.json"]
    assert asked["own", 2].snapshot == store.folder / f"{stem}-r2.pickle"
    assert asked["own", 1].snapshot is None
    assert {found: len(records) for found, records in store.by_case().items()} == {
        key: 2,
        trainer: 1,
    }


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("killed", "error", "SIGKILL"),
        ("hangs", "timeout", "took longer than its 1 s"),
        ("exits 0", "error", "ended with exit code 0 before it answered"),
        ("garbage", "error", "garbage"),
    ],
)
def test_a_worker_that_fails_costs_its_own_case_only(
    tmp_path: Path, store: RecordStore, make: SimpleNamespace, fault: str, status: str, said: str
) -> None:
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(SCRIPTED, encoding="utf-8")
    command = [sys.executable, "-S", str(script), str(log), fault, "2"]
    outcomes = run_plan(
        plan_of(make, 3),
        store,
        lambda: Worker("trace", command=command),
        Limits(timeout_s=1.0),
        lambda outcome: None,
    )
    records = [outcome.record for outcome in outcomes]
    assert [record and record.status for record in records] == ["ok", status, "ok"]
    assert records[1] is not None
    assert records[1].error is not None
    assert said in records[1].error.message
    assert len(store.read().records) == 3


RUNNER = r"""
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[5]]
from benchmarks.plan import make_plan
from benchmarks.runner import Limits, run_plan
from benchmarks.store import RecordStore
from benchmarks.suite import parse_suite
from profiler.workers import Worker

worker, log, folder, slow = sys.argv[1:5]
text = '[[matrix]]\nmodel = "openai-community/gpt2"\nsequence_length = 64\n'
text += "batch_size = [1, 2, 3, 4, 5, 6]"
suite = parse_suite(text, "six")
store = RecordStore(folder)
store.prepare()
plan = make_plan(suite, suite.cases, "trace", "0123456789ab", store.by_case())
command = [sys.executable, "-S", worker, log, "slow", slow, "15"]
run_plan(plan, store, lambda: Worker("trace", command=command), Limits(timeout_s=90),
         lambda outcome: print(outcome.planned.case.batch_size, flush=True))
"""


def test_a_runner_that_is_killed_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    script, worker = tmp_path / "runner.py", tmp_path / "worker.py"
    script.write_text(RUNNER, encoding="utf-8")
    worker.write_text(SCRIPTED, encoding="utf-8")
    log, folder = tmp_path / "log", tmp_path / "records"
    root = str(Path(__file__).parents[3])

    def start(slow: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(worker), str(log), str(folder), slow, root]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = start(slow="4")
    assert first.stdout is not None
    told = [first.stdout.readline().strip() for _ in range(3)]
    _wait_for(lambda: "4" in log.read_text(encoding="utf-8").split())
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    first.stdout.close()
    assert told == ["1", "2", "3"]
    finished = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert len(finished) == 3

    second = start(slow="0")
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert output.split() == ["4", "5", "6"]
    assert all(path.read_bytes() == content for path, content in finished.items())
    started = Counter(log.read_text(encoding="utf-8").split())
    # Case 4 was under way when its runner was killed; no other was started twice.
    assert started == {"1": 1, "2": 1, "3": 1, "4": 2, "5": 1, "6": 1}
    contents = RecordStore(folder).read()
    assert (len(contents.records), contents.problems) == (6, ())
    assert json.loads(next(iter(finished.values())))["status"] == "ok"


def test_two_runners_in_two_processes_run_every_case_once(tmp_path: Path) -> None:
    script, worker = tmp_path / "runner.py", tmp_path / "worker.py"
    script.write_text(RUNNER, encoding="utf-8")
    worker.write_text(SCRIPTED, encoding="utf-8")
    log, folder = tmp_path / "log", tmp_path / "records"
    root = str(Path(__file__).parents[3])
    command = [sys.executable, str(script), str(worker), str(log), str(folder), "0", root]
    runners = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert sorted(log.read_text(encoding="utf-8").split()) == ["1", "2", "3", "4", "5", "6"]
    contents = RecordStore(folder).read()
    assert (len(contents.records), contents.problems) == (6, ())


def test_a_folder_that_vanishes_under_a_run_stops_it_with_its_workers(
    store: RecordStore, make: SimpleNamespace
) -> None:
    workers: list[Any] = []

    def make_worker() -> Any:
        worker = make.worker(None)

        def answer(case: Case) -> Record:
            if case.batch_size == 3:
                # At once, whatever the other worker writes there.
                store.folder.rename(store.folder.with_name("gone"))
            elif case.batch_size > 3:
                assert worker.killed.wait(10)
            record: Record = make.record(case)
            return record

        worker.answer = answer
        workers.append(worker)
        return worker

    done: list[Outcome] = []
    with pytest.raises(RecordError, match="no such file or directory"):
        run_plan(plan_of(make, 6), store, make_worker, Limits(jobs=2), done.append)
    assert all(worker.killed.is_set() for worker in workers)
    assert len(done) <= 3
    assert not store.folder.exists()


def test_a_record_of_a_newer_gpumem_is_left_as_it_is(
    store: RecordStore, make: SimpleNamespace
) -> None:
    (planned,) = plan_of(make, 1).to_run
    newer = store.path(planned.case, planned.key, 1)
    newer.write_text('{"schema_version": 99, "what": "we do not know"}', encoding="utf-8")
    recorded = store.by_case()
    assert recorded == {}
    run_fakes(plan_of(make, 1), store, make, make.record)
    assert json.loads(newer.read_text(encoding="utf-8"))["schema_version"] == 99
    (found,) = store.read().records
    assert found.path.name.endswith("-r2.json")
    (problem,) = store.read().problems
    assert "newer gpumem" in problem.message


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
