"""Turns a table of published measurements into cases: `python -m benchmarks.published_import CSV`.

Writes results/published/measurements.jsonl (rows that state a case) and kept.jsonl (the rest, with
the reason), one row a line in the table's order: the same table gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

from benchmarks.evidence.rows import FOLDER, KEPT, MEASUREMENTS, PublishedRow, write_rows
from benchmarks.evidence.rules import read_row

COLUMNS = (
    *("id", "source", "model", "task", "method", "weights_dtype", "quant", "optimizer", "batch"),
    *("seq", "new_tokens", "grad_ckpt", "attn", "gpu", "n_gpus", "framework", "metric", "value"),
    *("unit", "tier", "use", "notes"),
)


def read_table(path: Path) -> list[PublishedRow]:
    """Read a CSV file with at least `COLUMNS`.

    Raises:
        SystemExit: a column is missing.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SystemExit(f"{path} has no column {', '.join(missing)}")
        return [read_row(row) for row in reader]


def summary(rows: list[PublishedRow]) -> list[str]:
    """Return what was read, in lines: cases by counter, and the reasons of the rest."""
    cases = [row for row in rows if row.case is not None]
    lines = [f"{len(rows)} rows, {len(cases)} of them cases"]
    kinds = Counter(
        "out of memory" if row.outcome == "oom" else f"{row.counter} {row.instant} tier {row.tier}"
        for row in cases
    )
    lines += [f"{count:6} {kind}" for kind, count in sorted(kinds.items())]
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    lines += [f"{count:6} kept: {reason}" for reason, count in reasons.most_common()]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Convert the table and print what came of it; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path, help="the table of published measurements")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args(arguments)
    rows = read_table(options.csv)
    options.output.mkdir(parents=True, exist_ok=True)
    write_rows(options.output / MEASUREMENTS, [row for row in rows if row.case is not None])
    write_rows(options.output / KEPT, [row for row in rows if row.case is None])
    print("\n".join(summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
