"""Histories: points by version, what changed from one to the next, what was not run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.history import CaseHistory, Figure, stretches, tell_history
from benchmarks.history_tables import markdown_lines, text_lines, to_json
from benchmarks.sides import Side, read_side
from profiler.environment import Environment
from profiler.record import Record


def environment(**versions: str) -> Environment:
    values: dict[str, Any] = {"torch": "2.13.0", "transformers": "5.17.0", **versions}
    identity = str(abs(hash(tuple(sorted(values.items())))))[:12]
    return Environment(environment_id=identity, python="3.11.9", platform="x", **values)


def side_of(folder: Path, *records: Record) -> Side:
    folder.mkdir()
    path = folder / "records.jsonl"
    path.write_text("".join(f"{record.to_json()}\n" for record in records), encoding="utf-8")
    return read_side(str(path))


def test_points_are_ordered_by_version_not_by_name_or_order(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    sides = [
        side_of(
            tmp_path / version,
            make.record(case, size, environment=environment(transformers=version)),
        )
        for version, size in (("5.10.0", 1100), ("5.9.0", 1000), ("4.57.6", 1000))
    ]
    history = tell_history(sides)
    assert history.names == ("transformers",)
    assert [history.title(index) for index in range(3)] == [
        "transformers 4.57.6",
        "transformers 5.9.0",
        "transformers 5.10.0",
    ]
    (told,) = history.cases
    assert [figure.peak_bytes for figure in told.figures if figure] == [1000, 1000, 1100]
    equal, grown = told.changes
    assert (equal.change_bytes, equal.component) == (0, None)
    assert (grown.change_bytes, grown.relative) == (100, pytest.approx(0.1))
    assert grown.component in ("weights", "unattributed")
    assert told.changed
    text = "\n".join(text_lines(history))
    assert "  1-2 " in text
    assert "+10.00 %" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_driver_is_a_point_of_its_own_and_a_card_a_line_of_its_own(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    case = make.case()
    records = [
        make.record(case, size, "cuda", environment(gpu=gpu, driver=driver))
        for gpu, driver, size in (("L4", "550.1", 10), ("L4", "560.2", 11), ("H100", "560.2", 20))
    ]
    sides = [side_of(tmp_path / str(i), record) for i, record in enumerate(records)]
    history = tell_history(sides)
    assert history.names == ("driver",)
    by_machine = {told.machine: told for told in history.cases}
    assert [figure and figure.peak_bytes for figure in by_machine["L4"].figures] == [10, 11]
    assert [figure and figure.peak_bytes for figure in by_machine["H100"].figures] == [None, 20]
    assert not by_machine["H100"].changed
    text = "\n".join(text_lines(history))
    assert "measured, L4]" in text


def test_a_refusal_is_part_of_the_history(tmp_path: Path, make: SimpleNamespace) -> None:
    case = make.case()
    failed = Record.failed(
        case, "trace", "error", "no such class", environment(transformers="5.0.0")
    )
    worked = make.record(case, environment=environment())
    history = tell_history([side_of(tmp_path / "a", failed), side_of(tmp_path / "b", worked)])
    (told,) = history.cases
    assert told.changed
    assert told.changes == ()
    assert "error: no such class" in "\n".join(text_lines(history))
    assert "error: no such class" in "\n".join(markdown_lines(history))
    figures = to_json(history)["cases"][0]["figures"]
    assert figures[0]["error"]["message"] == "error: no such class"
    assert figures[1]["peak_allocated_bytes"] == 10**9
    json.dumps(to_json(history), allow_nan=False)


def test_of_equal_points_the_newest_record_counts(tmp_path: Path, make: SimpleNamespace) -> None:
    case = make.case()
    older = make.record(case, 1000)
    later = older.provenance.model_copy(update={"started_at": "2026-02-01T00:00:00+00:00"})
    newer = make.record(case, 2000).model_copy(update={"provenance": later})
    for order in ((older, newer), (newer, older)):
        folder = tmp_path / str(order[0].peak.allocated_bytes)
        folder.mkdir()
        sides = [side_of(folder / str(i), record) for i, record in enumerate(order)]
        (told,) = tell_history(sides).cases
        assert [figure and figure.peak_bytes for figure in told.figures] == [2000]


@given(st.lists(st.sampled_from([None, 1, 2, 3]), max_size=12))
def test_stretches_cover_every_figure_once_and_in_order(sizes: list[int | None]) -> None:
    figures = tuple(None if size is None else Figure(None, str(size)) for size in sizes)
    case = CaseHistory("id", "0" * 12, "label", "trace", None, figures)
    found = list(stretches(case))
    for (_, last, figure), (first, _, following) in itertools.pairwise(found):
        assert last < first
        assert figure != following
    covered = [
        index
        for first, last, figure in found
        for index in range(first, last + 1)
        if figures[index] is not None and figures[index] == figure
    ]
    assert covered == [index for index, figure in enumerate(figures) if figure is not None]
