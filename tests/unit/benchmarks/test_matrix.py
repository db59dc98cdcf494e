"""The matrix's command, driven by a scripted worker: it writes as it goes, and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import matrix
from benchmarks.case_generator import QUICK, draw_cases
from benchmarks.matrix_answers import Answer, AnswerFile
from benchmarks.matrix_comparison import Comparison, Failure, compare_answer, summarize
from estimator import estimate
from estimator.case import Case
from estimator.errors import RecordError

SEED, COUNT = 3, 5


class Scripted:
    """Answers with the formulas' own figures; says what `script` says instead, once each."""

    script: Iterator[Any] = iter(())
    asked: list[Case]

    def __init__(self, source: str, timeout_s: float) -> None:
        assert source == "trace"
        assert timeout_s > 0

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def kill(self) -> None:
        return None

    def run(self, case: Case) -> Any:
        type(self).asked.append(case)
        told = next(type(self).script, None)
        if told is not None:
            return told
        return SimpleNamespace(report=estimate(case), error=None)


def failed(kind: str, message: str) -> Any:
    return SimpleNamespace(report=None, error=SimpleNamespace(message=message, kind=kind))


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.script, Scripted.asked = iter(()), []
    monkeypatch.setattr(matrix, "Worker", Scripted)
    return Scripted


def run(file: Path, *flags: str, count: int = COUNT) -> int:
    return matrix.main(
        ["--quick", "--seed", str(SEED), "--count", str(count), "-o", str(file), *flags]
    )


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, worker: type[Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "matrix.jsonl"
    worker.script = iter([failed("timeout", "it took too long"), failed("ModelError", "refused")])
    assert run(file, count=3) == 3
    out = capsys.readouterr().out
    assert "no answer of the trace (1): it took too long" in out
    assert "requested: 1 cases, median 0.000 %" in out
    assert len(file.read_text().splitlines()) == 3
    worker.asked.clear()
    assert run(file) == 3
    # What was answered or refused is not asked again; what took too long is.
    cases = list(draw_cases(SEED, COUNT, QUICK))
    assert worker.asked == [cases[0], cases[3], cases[4]]
    out = capsys.readouterr().out
    assert "no answer of the trace (1): refused" in out
    assert "requested: 4 cases" in out


def test_only_what_the_file_answers(tmp_path: Path, worker: type[Scripted]) -> None:
    file = tmp_path / "matrix.jsonl"
    assert run(file, count=2) == 0
    assert run(file, "--no-trace") == 3
    assert len(worker.asked) == 2


def test_an_interrupt_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "matrix.jsonl"
    assert run(file, count=2) == 0

    def interrupted(*_: object) -> bool:
        return False

    monkeypatch.setattr(matrix, "trace_cases", interrupted)
    assert run(file) == 130
    assert "requested: 2 cases" in capsys.readouterr().out


def test_tables_and_the_page(
    tmp_path: Path, worker: type[Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    worker.script = iter([failed("UnsupportedError", "no such thing")])
    assert run(tmp_path / "matrix.jsonl", "--tables", "--page", str(page)) == 3
    out = capsys.readouterr().out
    assert "family " in out
    assert "task training" in out
    text = page.read_text()
    assert f"--seed {SEED} --count {COUNT}" in text
    assert "Drawn: 5. Answered by both: 4. Not answered: 1." in text
    assert "| peak allocated | 4 | 0.0000 % |" in text
    assert "* 1 by the trace: no such thing" in text


def test_the_page_has_a_section_of_cases_held_out(
    tmp_path: Path, worker: type[Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    page, apart = tmp_path / "page.md", tmp_path / "apart.jsonl"
    run(tmp_path / "matrix.jsonl", "--page", str(page))
    assert "Held out" not in page.read_text()
    file = AnswerFile(apart)
    answered = [case for case in draw_cases(SEED + 1, 8, QUICK) if case.mixed_precision is None][:2]
    for case in answered:
        file.add(Answer(case, 1.5, estimate(case)))
    file.add(Answer(replace(answered[0], batch_size=77), 1.5, None, "no such thing", "CaseError"))
    run(tmp_path / "matrix.jsonl", "--held-out", str(apart), "--page", str(page))
    section = page.read_text().partition("## Held out")[2].partition("## Model types")[0]
    assert "Answered by both: 2. Not answered: 1." in section
    assert "| peak allocated | 2 | 0.0000 % |" in section
    capsys.readouterr()
    apart.write_text("no answer\n")
    assert run(tmp_path / "matrix.jsonl", "--held-out", str(apart), "--page", str(page)) == 2
    assert "is no answer" in capsys.readouterr().err


def test_an_answer_reads_back(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl")
    for case in (case for case in draw_cases(SEED, 8, QUICK) if case.mixed_precision is None):
        answer = Answer(case, 1.5, estimate(case))
        file.add(answer)
        read = file.read()[case.case_id]
        assert read.case == case
        assert read.report is not None
        assert read.report.peak == replace(estimate(case).peak, reason=None)
        assert read.report.components == estimate(case).components
        result = compare_answer(read)
        assert isinstance(result, Comparison)
        assert result.allocated_error == 0.0
    assert len(file.read()) >= 4


def test_a_line_cut_short_is_dropped_and_garbage_is_not(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, second = list(draw_cases(SEED, 2, QUICK))
    AnswerFile(path).add(Answer(first, 1.0, estimate(first)))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert list(AnswerFile(path).read()) == [first.case_id]
    AnswerFile(path).add(Answer(second, 1.0, None, "no", "timeout"))
    assert list(AnswerFile(path).read()) == [first.case_id, second.case_id]
    path.write_text('{"case": 1}\n')
    with pytest.raises(RecordError, match="line 1 is no answer"):
        AnswerFile(path).read()


def test_garbage_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("nonsense\n")
    assert run(file) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpumem: ")
    assert len(error.splitlines()) == 1


def test_a_formula_that_fails_costs_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(draw_cases(SEED, 1, QUICK))
    answer = Answer(case, 1.0, estimate(case))

    def broken(_: Case) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("benchmarks.matrix_comparison.estimate", broken)
    result = compare_answer(answer)
    assert result == Failure(case, "formulas", "ZeroDivisionError: by zero")


def test_a_summary_by_hand() -> None:
    summary = summarize([0.01, -0.02, 0.0, 0.03])
    assert summary.median == 0.015
    assert summary.percentile_95 == summary.worst == summary.worst_over == 0.03
    assert summary.worst_under == -0.02
    assert summarize([0.5]).worst_under == 0.0
    assert summarize([-0.5]).worst_over == 0.0
    assert summarize([0.001] * 19 + [0.9]).percentile_95 == 0.001
    with pytest.raises(ValueError, match="no errors"):
        summarize([])


def test_an_answers_line_is_short(tmp_path: Path) -> None:
    case = Case.from_dict({"model": "meta-llama/Llama-3.2-1B"})
    line = json.loads(json.dumps(Answer(case, 1.234, estimate(case)).to_dict()))
    assert line["case"] == {"model": "meta-llama/Llama-3.2-1B", "task": "inference"}
    assert line["seconds"] == 1.23
    assert set(line["trace"]) == {"parameters", "peak", "phases", "components"}
