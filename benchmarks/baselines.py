"""Baselines: the records of a suite kept under a name, to hold later runs against.

A baseline is one JSON Lines file, `<name>.jsonl`: one record a line, in the order of the cases'
labels, so that a baseline under version control shows in its diff which cases changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides import Side, read_side
from benchmarks.store import write_whole
from estimator.errors import GpumemError, RecordError, show_value
from estimator.suggest import did_you_mean

FOLDER = Path("results") / "baselines"
SUFFIX = ".jsonl"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class BaselineError(GpumemError):
    """A baseline has no good name, is not there, or is there already."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's name and what its file holds."""

    name: str
    side: Side


def baseline_path(name: str, folder: Path = FOLDER) -> Path:
    """Return the file of a baseline, whether it is there or not.

    Raises:
        BaselineError: when the name cannot be a file's.
    """
    if not _NAME.fullmatch(name):
        raise BaselineError(
            f"baseline name is {show_value(name)}, but must be letters, digits and . _ + -, "
            "such as main or transformers-5.17"
        )
    return folder / f"{name}{SUFFIX}"


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of the baselines in a folder, sorted; none where there is no folder."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"[!.]*{SUFFIX}")))


def save(name: str, records: str, folder: Path = FOLDER, replace: bool = False) -> Baseline:
    """Keep the newest record of each case of a folder of records under a name.

    Failed cases are kept too: a later run that succeeds is not compared with nothing in silence.

    Raises:
        BaselineError: a name that cannot be one, or that is taken and not to be replaced.
        RecordError: nothing to read in `records`, or the baseline cannot be written.
    """
    path = baseline_path(name, folder)
    if path.exists() and not replace:
        raise BaselineError(
            f"baseline {show_value(name)} is there already ({path}): --replace writes it anew"
        )
    side = read_side(records)
    if not side.cases:
        raise RecordError(f"there are no records in {records}")
    ordered = sorted(side.cases.items(), key=lambda item: (item[1].case.label.lower(), item[0]))
    text = "".join(f"{entry.record.to_json()}\n" for _, entry in ordered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecordError(f"baseline {str(path)!r} cannot be written: {reason}") from None
    return Baseline(name, side)


def load(name: str, folder: Path = FOLDER) -> Baseline:
    """Return a baseline.

    Raises:
        BaselineError: there is none of this name; the message names those that are there.
        RecordError: its file cannot be read.
    """
    path = baseline_path(name, folder)
    if not path.is_file():
        known = names(folder)
        there = ", ".join(known) if known else "none"
        raise BaselineError(
            f"there is no baseline {show_value(name)} in {folder}{did_you_mean(name, known)} "
            f"(there: {there}): gpumem baseline save {name} FOLDER makes it"
        )
    return Baseline(name, read_side(str(path)))
