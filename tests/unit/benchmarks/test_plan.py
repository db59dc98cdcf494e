"""Plans: what counts as recorded, what is run again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.plan import make_plan
from benchmarks.store import CaseKey
from benchmarks.suite import Suite, SuiteCase, SuiteError
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
