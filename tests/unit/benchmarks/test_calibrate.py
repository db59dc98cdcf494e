"""From runs to a stored calibration: what is kept, what is refused, and on which evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.calibrate.answers import Answered, answer_runs
from benchmarks.calibrate.calibration import calibrate, store
from benchmarks.calibrate.evidence import (
    EvidenceError,
    Run,
    described,
    evidence_hash,
    measured_runs,
    published_runs,
)
from benchmarks.calibrate.recovery import made_up_runs
from benchmarks.calibrate.tables import markdown_lines, text_lines
from benchmarks.holdout import is_held_out
from benchmarks.store import CaseKey, RecordStore
from estimator.case import Case
from estimator.coefficients import Calibration, load_calibration
from profiler.record import Record


def evidence(drift: float = 0.0) -> tuple[Answered, ...]:
    """Made-up runs: allocated near the estimate, reserved 10 % of the moving bytes above its own,
    and a device that shows 600 MB more; `drift` is an error that differs by family."""
    random = np.random.default_rng(4)
    runs = made_up_runs()
    families = sorted({item.run.family for item in runs})
    found = []
    for item in runs:
        assert item.architecture is not None
        shift = 1 + drift * (families.index(item.run.family) - 2.5)
        allocated = item.architecture.peak.allocated_bytes
        moving = allocated - item.architecture.components.weights_bytes
        reserved = item.architecture.peak.reserved_bytes
        assert reserved is not None
        noise = 1 + 0.01 * random.normal(size=3)
        counters = {
            "allocated": round(allocated * shift * noise[0]),
            "reserved": round((reserved + 0.1 * moving) * shift * noise[1]),
            "device": round((reserved + 0.1 * moving + 6e8) * shift * noise[2]),
        }
        found.append(replace(item, run=replace(item.run, counters=counters)))
    return tuple(found)


def store_records(folder: Path, *records: Record) -> None:
    kept = RecordStore(folder)
    kept.prepare()
    for record in records:
        kept.write(record, CaseKey(record.case_id, record.source, "0123456789ab"))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(evidence(), "made-up", resamples=20)


def test_what_improves_left_out_families_is_used(calibration: Calibration) -> None:
    device = calibration.fit("device")
    assert device is not None
    assert device.before is not None
    assert device.after is not None
    assert device.after.median < 0.02 < device.before.median
    assert device.families == tuple(sorted(device.families))
    assert len(device.families) == 6
    assert len(device.evidence) == device.runs == 48


def test_what_does_not_improve_them_is_refused(calibration: Calibration) -> None:
    scratch = next(fit for fit in calibration.fits if fit.name == "scratch")
    assert not scratch.accepted
    assert scratch.reason.startswith("refused: ")
    assert calibration.fit("scratch") is None


def test_a_constant_that_absorbs_families_is_refused() -> None:
    found = calibrate(evidence(drift=0.05), "drifting", resamples=10)
    scratch = next(fit for fit in found.fits if fit.name == "scratch")
    assert not scratch.accepted


def test_intervals_say_what_they_held(calibration: Calibration) -> None:
    for kind in ("inference", "training full"):
        for counter, least, most in (("allocated", 0.85, 0.95), ("device", 0.92, 0.98)):
            rule = calibration.interval(counter, kind)
            assert rule is not None
            assert rule.coverage is not None
            assert least <= rule.coverage <= most
    assert calibration.interval("allocated", "training lora") is None


def test_a_calibration_survives_its_file(calibration: Calibration, tmp_path: Path) -> None:
    path = store(calibration, tmp_path / "new")
    assert load_calibration(str(path)) == calibration
    assert json.loads(path.read_text())["evidence_hash"] == calibration.evidence_hash


def test_tables_name_every_coefficient_and_fit_80_columns(calibration: Calibration) -> None:
    text = "\n".join(text_lines(calibration, (("architecture: no formula for this", 3),)))
    page = "\n".join(markdown_lines(calibration))
    assert max(map(len, text.splitlines())) <= 80
    for fit in calibration.fits:
        for item in fit.coefficients:
            assert item.name in text
            assert f"`{item.name}`" in page
    assert "3 x architecture: no formula for this" in text


def test_no_evidence_is_an_error() -> None:
    with pytest.raises(EvidenceError, match="no measured run has an estimate"):
        calibrate((), "empty")


def test_the_hash_knows_every_figure_and_no_order() -> None:
    runs = [item.run for item in evidence()]
    assert evidence_hash(runs) == evidence_hash(list(reversed(runs)))
    other = [replace(runs[0], counters={"allocated": 1}), *runs[1:]]
    assert evidence_hash(other) != evidence_hash(runs)


def test_evidence_says_by_whom_where_and_on_what() -> None:
    runs = [item.run for item in evidence()]
    assert described(runs) == "made up on A100-80GB"
    older = replace(runs[0].case, stack="transformers-4.48", gpu="l4")
    more = [*runs, replace(runs[0], case=older)]
    assert described(more) == "made up on A100-80GB and L4, older stacks (docs/stacks.md)"


def test_published_figures_of_one_run_are_together() -> None:
    runs = published_runs()
    assert len({name for run in runs for name in run.ids}) == sum(len(run.ids) for run in runs)
    assert any(set(run.counters) == {"allocated", "reserved", "device"} for run in runs)
    assert not any(is_held_out(run.case) for run in runs)


def test_traces_and_held_out_cases_are_no_evidence(tmp_path: Path, make: SimpleNamespace) -> None:
    store_records(
        tmp_path,
        make.record(make.case(), source="trace"),
        make.record(make.case(model="Qwen/Qwen3-8B"), source="cuda"),
    )
    assert measured_runs(tmp_path) == ()
    store_records(tmp_path, make.record(make.case(batch_size=2), source="cuda"))
    (run,) = measured_runs(tmp_path)
    assert run.family == "gpt2"
    assert run.counters["allocated"] > 0


def test_runs_without_an_estimate_are_counted_with_the_reason() -> None:
    case = Case.from_dict({"model": "tiiuae/Falcon-H1-0.5B-Base", "cache": "quantized"})
    answers = answer_runs([Run(("one",), case, "falcon_h1", {"allocated": 1}, "made up")])
    assert [count for _, count in answers.unanswered] == [1]
    assert "cache 'quantized' of falcon_h1" in answers.unanswered[0][0]
    assert answers.runs[0].architecture is None
    assert answers.runs[0].article is not None
