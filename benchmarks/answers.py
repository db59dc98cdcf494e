"""Writes down what the formulas answer, to the byte: `python -m benchmarks.answers FILE`.

One JSON line a case: those of all suites, every catalogue model in a few settings, and random ones.
Two files of the same seed, one from before a change and one from after it, are equal where the
change was to alter no answer (`cmp BEFORE AFTER`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.case_generator import draw_cases
from benchmarks.suite import builtin_suites, load_suite
from estimator import estimate
from estimator.case import Case
from estimator.catalogue import entries
from estimator.errors import GpumemError

_SETTINGS: tuple[dict[str, Any], ...] = (
    {"task": "training", "gradient_checkpointing": True},
    {"task": "training", "mixed_precision": "bf16", "gradient_accumulation_steps": 2},
    {"task": "training", "attention": "eager", "dtype": "float32"},
    {"task": "training", "method": "lora", "quantization": "nf4", "keep_logits": True},
    {"task": "inference", "max_new_tokens": 300},
    {"task": "inference", "cache": "static"},
    {"task": "inference", "quantization": "int8", "max_new_tokens": 3},
)


def answers(seed: int, count: int) -> Iterator[str]:
    """Yield a line a case: the case, and its report or why there is none."""
    for case in itertools.chain(_suites(), _catalogue(seed), draw_cases(seed, count)):
        try:
            line = estimate(case).to_dict()
        except GpumemError as problem:
            line = {"case": case.to_dict(), "error": str(problem)}
        yield json.dumps(line)


def _suites() -> Iterator[Case]:
    for name in builtin_suites():
        yield from (item.case for item in load_suite(name).cases)


def _catalogue(seed: int) -> Iterator[Case]:
    """Each model in each setting, at shapes of its own."""
    for entry in entries():
        rng = random.Random(f"{seed}/{entry.name}")
        for settings in _SETTINGS:
            shape = {"batch_size": rng.randint(1, 4), "sequence_length": rng.randint(2, 3000)}
            yield Case.from_dict({"model": entry.name, **shape, **settings})


def main() -> int:
    """Write the file; return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("-n", "--count", type=int, default=2000, help="random cases")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with options.file.open("w", encoding="utf-8") as stream:
        for line in answers(options.seed, options.count):
            stream.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
