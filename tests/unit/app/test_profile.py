"""`gpumem profile` around a scripted worker: what it prints, stores and exits with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from app.cli import main
from estimator.article import estimate_article
from estimator.case import Case
from profiler.record import Measurement, OutOfMemory, Record
from profiler.requests import HowToRun

Script = Callable[[Case], Record]


def measured(case: Case) -> Record:
    report = replace(estimate_article(case), source="cuda", assumptions=())
    return Record.from_report(report, None, None, Measurement(flags=("the tree was dirty",)))


def out_of_memory(case: Case) -> Record:
    oom = OutOfMemory(phase="backward", asked_bytes=2 * 10**9)
    return Record.failed(case, "cuda", "oom", "out of memory", kind="oom", oom=oom)


def failed(case: Case) -> Record:
    return Record.failed(case, "cuda", "error", "the worker was killed by SIGSEGV", kind="signal")


def timed_out(case: Case) -> Record:
    return Record.failed(case, "cuda", "timeout", "the worker took longer than 5 s", kind="timeout")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[tuple[Case, float]]]:
    """Return a function that scripts the worker and returns the list of what it was asked."""

    def install(script: Script) -> list[tuple[Case, float]]:
        asked: list[tuple[Case, float]] = []

        class Worker:
            def __init__(self, source: str, timeout_s: float) -> None:
                assert source == "cuda"
                self.timeout_s = timeout_s

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def run(self, case: Case, how: HowToRun) -> Record:
                asked.append((case, self.timeout_s))
                return script(case)

        monkeypatch.setattr("profiler.workers.Worker", Worker)
        monkeypatch.setattr("app.commands.profile.need_torch", lambda verb: None)
        monkeypatch.setattr("app.commands.profile.need_cuda", lambda: None)
        return asked

    return install


def test_measured(worker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = worker(measured)
    assert main(["profile", "gpt2", "-b", "2", "--timeout", "7"]) == 0
    out = capsys.readouterr().out
    assert "measured on a GPU" in out
    assert "careful: the tree was dirty" in out
    assert [(case.batch_size, timeout) for case, timeout in asked] == [(2, 7.0)]


def test_json_is_the_record(worker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    worker(measured)
    assert main(["profile", "gpt2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["source"], data["status"]) == ("cuda", "ok")


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--check"], 1)])
def test_out_of_memory_is_a_result(
    worker: Any, capsys: pytest.CaptureFixture[str], flags: list[str], code: int
) -> None:
    worker(out_of_memory)
    assert main(["profile", "gpt2", *flags]) == code
    captured = capsys.readouterr()
    assert captured.out == ("out of GPU memory in backward, which asked for 2.00 GB (1.86 GiB)\n")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("script", "code", "says"), [(failed, 3, "SIGSEGV"), (timed_out, 124, "longer than 5 s")]
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_failures(
    worker: Any,
    capsys: pytest.CaptureFixture[str],
    script: Script,
    code: int,
    says: str,
    flags: list[str],
) -> None:
    worker(script)
    assert main(["profile", "gpt2", *flags]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("gpumem: ")
    assert captured.err.count("\n") == 1
    assert ("error" in json.loads(captured.out)) if flags else (captured.out == "")


@pytest.mark.parametrize("script", [measured, out_of_memory, failed, timed_out])
def test_every_outcome_is_stored(worker: Any, tmp_path: Path, script: Script) -> None:
    worker(script)
    main(["profile", "gpt2", "-o", str(tmp_path)])
    main(["profile", "gpt2", "-o", str(tmp_path)])
    files = sorted(path.name for path in tmp_path.glob("*.json"))
    assert len(files) == 2
    records = [Record.from_json((tmp_path / name).read_text()) for name in files]
    assert {record.status for record in records} == {
        script(Case.from_dict({"model": "gpt2"})).status
    }


def test_folder_that_cannot_be_written_is_told_before_the_run(
    worker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = worker(measured)
    (tmp_path / "file").write_text("")
    assert main(["profile", "gpt2", "-o", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert asked == []


def test_cases(worker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"model": "gpt2"}\n{"model": "gpt2", "batch_size": 2}\n{"model": "nope"}\n')
    worker(lambda case: measured(case) if case.batch_size == 1 else failed(case))
    assert main(["profile", "--cases", str(path)]) == 3
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["status"] == "ok"
    assert second["error"]["message"] == "the worker was killed by SIGSEGV"
    assert "catalogue" in third["error"]["message"]


def test_out_of_memory_does_not_fail_a_file_of_cases(worker: Any, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"model": "gpt2"}\n')
    worker(out_of_memory)
    assert main(["profile", "--cases", str(path)]) == 0
