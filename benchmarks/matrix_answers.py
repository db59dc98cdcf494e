"""The trace's answers to the matrix's cases, one line of JSON each, written as they come.

A line holds the case and what the trace says of it, and nothing that a formula says: formulas are
asked again whenever the answers are read, so that one mended needs no new trace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.errors import GpumemError, RecordError
from estimator.report import MemoryReport
from profiler.record import Record

_FINAL = ("UnsupportedError", "ModelError", "CaseError")
"""Kinds of errors that come again: a case that the trace refuses is not asked about twice."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the trace says of one case: a report, or why there is none.

    `kind` is the error's, as `profiler.record.RunError` has it.
    """

    case: Case
    seconds: float
    report: MemoryReport | None = None
    message: str | None = None
    kind: str | None = None

    @classmethod
    def from_record(cls, case: Case, record: Record, seconds: float) -> Answer:
        """Return what a worker's record says."""
        if record.report is not None:
            return cls(case, seconds, record.report)
        if record.error is None:
            return cls(case, seconds, None, record.status, record.status)
        return cls(case, seconds, None, record.error.message, record.error.kind)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, CaseError: it did not.
        """
        case = Case.from_dict(data["case"])
        if "error" in data:
            error = data["error"]
            return cls(case, data["seconds"], None, error["message"], error["kind"])
        filled = {"schema_version": 1, "interval": None, "assumptions": [], **data["trace"]}
        report = MemoryReport.from_dict({"source": "trace", "case": case.to_dict(), **filled})
        return cls(case, data["seconds"], report)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as a JSON object; fields of the case at their defaults are left out."""
        case = self.case.to_dict()
        default = Case.from_dict({"model": case["model"], "task": case["task"]}).to_dict()
        given = {key: value for key, value in case.items() if value != default[key]}
        row: dict[str, Any] = {
            "case": {"model": case["model"], "task": case["task"], **given},
            "seconds": round(self.seconds, 2),
        }
        if self.report is None:
            return {**row, "error": {"message": self.message, "kind": self.kind}}
        told = self.report.to_dict()
        kept = {name: told[name] for name in ("parameters", "peak", "phases", "components")}
        kept["components"] = {name: size for name, size in kept["components"].items() if size}
        kept["peak"] = {
            name: value
            for name, value in kept["peak"].items()
            if value is not None and name != "reason"
        }
        return {**row, "trace": kept}

    @property
    def final(self) -> bool:
        """Whether asking again would give the same answer."""
        return self.report is not None or self.kind in _FINAL


class AnswerFile:
    """A file of answers that grows by a line a case; a line that a crash cut short is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Answer]:
        """Return the answers by case id, the last one of each case.

        Raises:
            RecordError: the file cannot be read, or a line before the last is no answer.
        """
        return {answer.case.case_id: answer for answer in self._answers()}

    def _answers(self) -> Iterator[Answer]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{self.path} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                yield Answer.from_dict(json.loads(line))
            except (GpumemError, ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{self.path}, line {number} is no answer: {error}") from None

    def add(self, answer: Answer) -> None:
        """Append one answer; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(answer.to_dict(), separators=(",", ":")) + "\n"
        with self.path.open("ab") as stream:
            if stream.tell() and not _ends_line(self.path):
                _drop_torn_line(self.path)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    os.truncate(path, data.rfind(b"\n") + 1)
