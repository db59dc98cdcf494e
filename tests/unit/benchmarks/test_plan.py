"""Plans: what counts as recorded, what is run again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.plan import Plan, make_plan
from benchmarks.run_settings import RunSettings
from benchmarks.store import CaseKey
from benchmarks.suite import Suite, SuiteCase
from benchmarks.suite_error import SuiteError
from estimator.case import Case
from estimator.errors import ModelError, UnsupportedError

pytestmark = pytest.mark.usefixtures("fake_estimate")


def suite_of(*cases: Case) -> Suite:
    entries = tuple(SuiteCase(f"case-{number}", case) for number, case in enumerate(cases))
    return Suite("mine", "", entries)


def test_only_what_is_missing_is_run(make: SimpleNamespace) -> None:
    ok, oom, failed, missing = (make.case(batch_size=size) for size in (1, 2, 3, 4))
    records = {
        ok: make.record(ok),
        oom: make.failure(oom, "oom"),
        failed: make.failure(failed, "timeout"),
    }
    recorded = {
        CaseKey(case.case_id, "trace", make.environment_id): (record,)
        for case, record in records.items()
    }
    suite = suite_of(ok, oom, failed, missing)

    def to_run(rerun: str | None) -> list[str]:
        plan = make_plan(suite, suite.cases, "trace", make.environment_id, recorded, rerun)
        assert plan.total == 4
        return [planned.id for planned in plan.to_run]

    assert to_run(None) == ["case-3"]
    assert to_run("failed") == ["case-2", "case-3"]
    assert to_run("all") == ["case-0", "case-1", "case-2", "case-3"]


def test_a_record_of_another_environment_or_source_does_not_count(make: SimpleNamespace) -> None:
    case = make.case()
    suite = suite_of(case)
    for key in (
        CaseKey(case.case_id, "cuda", make.environment_id),
        CaseKey(case.case_id, "trace", "f" * 12),
    ):
        recorded = {key: (make.record(case),)}
        plan = make_plan(suite, suite.cases, "trace", make.environment_id, recorded)
        assert len(plan.to_run) == 1


def test_the_newest_repeat_decides(make: SimpleNamespace) -> None:
    case = make.case()
    suite = suite_of(case)
    key = CaseKey(case.case_id, "trace", make.environment_id)
    recorded = {key: (make.failure(case), make.record(case))}
    plan = make_plan(suite, suite.cases, "trace", make.environment_id, recorded, "failed")
    assert plan.to_run == ()
    assert plan.done[0].repeats == 2


def test_a_model_that_is_not_there_is_an_error_before_anything_runs(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(case: Case) -> None:
        raise ModelError("no such model")

    monkeypatch.setattr("benchmarks.needs.estimate", refuse)
    suite = suite_of(make.case())
    with pytest.raises(SuiteError, match="suite 'mine', case case-0: model: no such model"):
        make_plan(suite, suite.cases, "trace", make.environment_id, {})


def test_a_case_without_an_estimate_is_still_run(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(case: Case) -> None:
        raise UnsupportedError("not yet")

    monkeypatch.setattr("benchmarks.needs.estimate", refuse)
    suite = suite_of(make.case())
    plan = make_plan(suite, suite.cases, "trace", make.environment_id, {})
    assert plan.to_run[0].peak_bytes is None


def test_a_traced_record_predicts_where_no_estimate_does(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(case: Case) -> None:
        raise UnsupportedError("not yet")

    monkeypatch.setattr("benchmarks.needs.estimate", refuse)
    case = make.case()
    key = CaseKey(case.case_id, "trace", "f" * 12)
    traced = {key: (make.record(case, 3 * 10**9, reserved_bytes=4 * 10**9),)}
    plan = make_plan(suite_of(case), suite_of(case).cases, "cuda", make.environment_id, traced)
    (planned,) = plan.to_run
    assert planned.peak_bytes == 3 * 10**9
    assert planned.peak is not None
    assert planned.peak.reserved_bytes == 4 * 10**9


SETTINGS = RunSettings(repeats=3, alone=True, history=True, trainer=True)


def ids(plan: Plan) -> list[str]:
    return [planned.id for planned in plan.to_run]


def test_repeats_and_trainer_are_runs_of_their_own_on_a_gpu(make: SimpleNamespace) -> None:
    case = make.case(task="training")
    suite = Suite("mine", "", (SuiteCase("a", case, SETTINGS),))
    here = make.environment_id
    own, trainer = (CaseKey(case.case_id, "cuda", here, loop) for loop in ("own", "trainer"))
    plan = make_plan(suite, suite.cases, "cuda", here, {})
    assert ids(plan) == ["a#1", "a#2", "a#3", "a@trainer"]
    assert [planned.repeats for planned in plan.to_run] == [0, 1, 2, 0]
    assert all(planned.alone and planned.history for planned in plan.to_run)
    record = make.record(case, source="cuda")
    plan = make_plan(suite, suite.cases, "cuda", here, {own: (record, record)})
    assert ids(plan) == ["a#3", "a@trainer"]
    plan = make_plan(suite, suite.cases, "cuda", here, {own: 3 * (record,), trainer: (record,)})
    assert (ids(plan), len(plan.done)) == ([], 2)
    failed = {own: (record, make.failure(case)), trainer: (record,)}
    assert ids(make_plan(suite, suite.cases, "cuda", here, failed, "failed")) == ["a#3"]
    assert plan.seconds == 0.0


def test_a_trace_is_run_once_whatever_the_suite_asks(make: SimpleNamespace) -> None:
    case = make.case(task="training")
    suite = Suite("mine", "", (SuiteCase("a", case, SETTINGS),))
    plan = make_plan(suite, suite.cases, "trace", make.environment_id, {})
    assert ids(plan) == ["a"]
    assert not plan.to_run[0].history
    assert plan.seconds > 0


def test_a_loop_that_is_asked_for_is_the_only_one(make: SimpleNamespace) -> None:
    training, inference = make.case(task="training"), make.case()
    suite = Suite("mine", "", (SuiteCase("t", training, SETTINGS), SuiteCase("i", inference)))
    here = make.environment_id
    assert ids(make_plan(suite, suite.cases, "cuda", here, {}, None, "trainer")) == ["t@trainer"]
    assert ids(make_plan(suite, suite.cases, "cuda", here, {}, None, "own")) == [
        "t#1",
        "t#2",
        "t#3",
        "i",
    ]
    with pytest.raises(SuiteError, match="none of 1 cases runs through Trainer"):
        make_plan(suite, suite.cases[1:], "cuda", here, {}, None, "trainer")
