"""Records measured on a card: predictions are made for that card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.compare import compare_estimates, compare_records
from benchmarks.report.evidence import gather
from benchmarks.sides import Side, read_side
from benchmarks.store import CaseKey, RecordStore
from estimator.case import Case
from estimator.gpus import HOPPER_WORKSPACE_BYTES, workspace_bytes
from estimator.report import MemoryReport
from profiler.record import Record

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(name="workspace_of")
def workspace_of_fixture(make: SimpleNamespace) -> object:
    """An estimator that answers nothing but the workspace of the case's card."""

    def estimate(case: Case, formulas: str) -> MemoryReport:
        report: MemoryReport = make.report(case, workspace_bytes(case.gpu), formulas)
        return report

    return estimate


def write(folder: Path, *records: Record) -> Side:
    store = RecordStore(folder)
    store.prepare()
    for record in records:
        assert record.environment is not None
        identity = record.environment.environment_id
        store.write(record, CaseKey(record.case_id, record.source, identity))
    return read_side(str(folder))


def measured(
    make: SimpleNamespace, card: str, setting: str | None = None, **fields: object
) -> Record:
    environment = make.environment("ab" * 6).model_copy(
        update={"gpu": card, "cublas_workspace": setting}
    )
    record: Record = make.record(make.case(**fields), source="cuda", environment=environment)
    return record


def test_estimates_have_the_workspaces_of_the_card_that_measured(
    tmp_path: Path, make: SimpleNamespace, workspace_of: object
) -> None:
    side = write(tmp_path, measured(make, H100), make.record(make.case()))
    rows = compare_estimates(side, estimator=workspace_of).rows
    sizes = {
        row.reference.source: row.compared["architecture"].peak.allocated_bytes for row in rows
    }
    assert sizes == {"cuda": HOPPER_WORKSPACE_BYTES, "trace": workspace_bytes(None)}


def test_a_card_that_the_case_names_is_not_replaced(tmp_path: Path, make: SimpleNamespace) -> None:
    (entry,) = write(tmp_path, measured(make, H100, gpu="T4")).cases.values()
    assert entry.predicted_case.gpu == "T4"


@pytest.mark.parametrize(
    ("gpu", "setting", "said"),
    [
        ("NVIDIA Z9000", None, "NVIDIA Z9000, which is not in the catalogue"),
        (H100, ":16:8", "CUBLAS_WORKSPACE_CONFIG=:16:8"),
    ],
)
def test_workspaces_that_predictions_cannot_know_are_said(
    tmp_path: Path, make: SimpleNamespace, gpu: str, setting: str | None, said: str
) -> None:
    (note,) = write(tmp_path, measured(make, gpu, setting)).notes()
    assert said in note


def test_a_trace_for_another_card_is_not_passed_off_as_a_prediction(
    tmp_path: Path, make: SimpleNamespace, workspace_of: object
) -> None:
    base = write(tmp_path / "traced", make.record(make.case()))
    for gpu, same in ((H100, False), ("NVIDIA A100-SXM4-80GB", True)):
        new = write(tmp_path / gpu, measured(make, gpu))
        notes = compare_records(base, new, across_environments=True).notes
        assert any("other cuBLAS workspaces" in note for note in notes) is not same
        sets, _ = gather([base, new], estimator=workspace_of)
        (row,) = next(one for one in sets if one.word == "measured").rows
        assert ("trace" in row.compared) is same
