"""A published row: the figure as printed, and the case it was a run of, or why it is none.

results/published/measurements.jsonl holds the rows that state enough, results/published/kept.jsonl
the rest, each with its reason. Both are written by `python -m benchmarks.published_import CSV`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.errors import GpumemError

FOLDER = Path(__file__).parents[2] / "results" / "published"
MEASUREMENTS = "measurements.jsonl"
KEPT = "kept.jsonl"

COUNTERS = ("allocated", "reserved", "device")
INSTANTS = ("peak", "after_step", "after_generate")
TIERS = ("A", "B", "C")
OUTCOMES = ("ok", "oom")


class PublishedError(GpumemError):
    """Published rows cannot be read; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One figure that others measured.

    `value` and `unit` are as printed; `size_bytes` is what they mean, `resolution_bytes` half a
    unit of the last digit. `counter` and `instant` say what was counted when: `after_step` is the
    end of a training step, `after_generate` of the last token's. `tier` is A where counter, unit
    and settings are all known, B where one thing is missing or noisy, C where it is rounded or
    unclear. An `oom` row has no figure: the run needed more than `capacity_bytes`. `reason` says
    why a row is no case. `caveat` says what the case had to assume.
    """

    row_id: str
    source: str
    tier: str
    model: str
    task: str
    method: str
    metric: str
    value: str
    unit: str
    gpu: str
    framework: str
    notes: str
    outcome: str = "ok"
    case: Case | None = None
    counter: str | None = None
    instant: str | None = None
    size_bytes: int | None = None
    resolution_bytes: int | None = None
    capacity_bytes: int | None = None
    caveat: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object, without what is empty; a case without its defaults."""
        result = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.case is not None:
            result["case"] = stated_fields(self.case)
        return {name: value for name, value in result.items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PublishedRow:
        """Read what `to_dict` wrote.

        Raises:
            CaseError: its case is not a valid one.
            TypeError: a field is unknown.
        """
        texts = dict.fromkeys(("model", "task", "method", "value", "unit"), "")
        texts |= dict.fromkeys(("metric", "gpu", "framework", "notes"), "")
        case = data.get("case")
        given = {**texts, **data, "case": None if case is None else Case.from_dict(case)}
        return cls(**given)


def stated_fields(case: Case) -> dict[str, Any]:
    """Return the fields of a case that differ from the defaults of its task."""
    full = case.to_dict()
    plain = Case.from_dict({"model": full["model"], "task": full["task"]}).to_dict()
    return {
        name: value
        for name, value in full.items()
        if value != plain[name] or name in ("model", "task")
    }


def write_rows(path: Path, rows: Iterable[PublishedRow]) -> None:
    """Write rows as JSON Lines, one a line, in their order."""
    lines = (json.dumps(row.to_dict(), separators=(",", ":"), ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_rows(path: Path) -> tuple[PublishedRow, ...]:
    """Read the rows of a JSON Lines file.

    Raises:
        PublishedError: no such file, or a line that is no row.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise PublishedError(f"published rows {path} cannot be read: {problem.strerror}") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows.append(PublishedRow.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, GpumemError) as problem:
            raise PublishedError(f"{path}, line {number} is no published row: {problem}") from None
    return tuple(rows)


@cache
def published_measurements() -> tuple[PublishedRow, ...]:
    """Return the project's own rows that are cases, with a figure or one that ran out of memory."""
    return read_rows(FOLDER / MEASUREMENTS)


def published_figures(
    counter: str = "allocated", instant: str = "peak", tiers: Iterable[str] = ("A",)
) -> tuple[PublishedRow, ...]:
    """Return the rows with a figure of one counter at one instant, in the given tiers."""
    wanted = set(tiers)
    return tuple(
        row
        for row in published_measurements()
        if row.outcome == "ok"
        and row.counter == counter
        and row.instant == instant
        and row.tier in wanted
    )
