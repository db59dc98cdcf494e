"""Hostile input: `python -m benchmarks.fuzz --count 10000 --seed 0`.

Cases are drawn, and then spoiled: fields of the case and of the model's configuration are dropped,
exchanged with those of others, or replaced by junk. Whatever comes of it, an estimate has to be a
report without negative or missing sizes, or one clear sentence; everything else is a finding.
Exit code 1 where there are any.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
import traceback
from collections.abc import Iterator
from functools import cache
from typing import Any

from benchmarks.case_generator import QUICK, Bounds, draw_cases
from estimator import FORMULAS, estimate
from estimator.case import Case
from estimator.catalogue import entries
from estimator.errors import GpumemError
from estimator.families import PARSERS
from estimator.families.parameters_only import COUNTERS
from estimator.report import MemoryReport

LONGEST_SENTENCE = 1000
"""Characters of an error: more is no sentence, but a dump."""

LONGEST_S = 2.0
"""Seconds of an answer, however large the numbers: an order of magnitude above the slowest."""

_BOUNDS = (QUICK, QUICK, Bounds())
_NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 4096, 10_001, 2**31 - 1, 2**31, 2**53, 2**63, 10**30)
_JUNK: tuple[Any, ...] = (
    *(None, True, False, "", " ", "abc", "silu", "all-linear", "\0", "ü\n", "full_attention"),
    *(0.0, -0.0, 0.5, 1.5, -1e308, 1e-320, float("nan"), float("inf"), 10**400, -(10**400)),
    *([], {}, [None], [0], ["full_attention"], [[]], {"a": {"b": []}}, {"": None}, ["x"] * 3),
    *((), b"bytes", 1j, {"full", "lora"}, object),
)
_NAMES = (
    *("silu", "gelu", "gelu_new", "gelu_fast", "relu2", "xielu", "quick_gelu", "nonsense"),
    *("float32", "eager", "static", "quantized", "lora", "training", "adafactor", "sgd", "A10"),
)
_ROPE = (
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000},
    {"rope_type": "nonsense"},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": None},
    {"type": "linear", "factor": "2"},
    {"partial_rotary_factor": 0.3},
)
_LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention", "chunked_attention", 7)
_NESTED: dict[str, tuple[Any, ...]] = {
    "rope_parameters": _ROPE,
    "rope_scaling": _ROPE,
    "quantization_config": ({"quant_method": "fp8"}, {"load_in_4bit": True}, [], "nf4"),
    "layer_types": (["sliding_attention"], ["nonsense"] * 4, "full_attention", [None] * 2),
    "text_config": ({}, {"model_type": "llama"}, [], {"text_config": {"model_type": "gpt2"}}),
    "sliding_window": (None, 0, 1, 2**31 - 1, "4096", [4096]),
}


def spoiled_cases(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the fields of `count` cases; each is drawn from its own stream of the seed."""
    for index in range(count):
        yield spoiled_case(random.Random(f"{seed}/{index}"))


def spoiled_case(rng: random.Random) -> dict[str, Any]:
    """Draw a case, spoil its model's configuration and its fields, and return them."""
    bounds = rng.choice(_BOUNDS)
    drawn, other = (next(draw_cases(rng.getrandbits(32), 1, bounds)).to_dict() for _ in range(2))
    config = _config(rng, drawn["model"])
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        _spoil_config(rng, config)
    fields = {**drawn, "model": config if rng.random() < 0.9 else drawn["model"]}
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        _spoil(rng, fields, other)
    return fields


def _config(rng: random.Random, model: str | dict[str, Any]) -> dict[str, Any]:
    """Return the drawn model's configuration, that of any other, or a type and its defaults."""
    chance = rng.random()
    if chance < 0.4 and isinstance(model, dict):
        return copy.deepcopy(model)
    if chance < 0.85:
        config = copy.deepcopy(rng.choice(entries()).config)
        if rng.random() < 0.1:
            config["model_type"] = rng.choice(_types())
        return config
    return {"model_type": rng.choice(_types())}


@cache
def _types() -> tuple[str, ...]:
    return tuple(sorted({*PARSERS, *COUNTERS, "nonsense"}))


def _spoil_config(rng: random.Random, config: dict[str, Any]) -> None:
    """Change one field of a configuration, or wrap it."""
    chance = rng.random()
    if chance < 0.15:
        name = rng.choice(tuple(_NESTED))
        config[name] = rng.choice(_NESTED[name])
    elif chance < 0.25:
        config["layer_types"] = rng.choices(_LAYER_TYPES, k=rng.randint(0, 40))
    elif chance < 0.32:
        whole = copy.deepcopy(config)
        config.clear()
        config |= {"text_config": whole, "model_type": rng.choice(("llava", "gemma3", None, 3))}
    else:
        inner = config.get("text_config")
        target = inner if isinstance(inner, dict) and inner else config
        _spoil(rng, target, rng.choice(entries()).config)


def _spoil(rng: random.Random, fields: dict[str, Any], other: dict[str, Any]) -> None:
    """Drop a field, take another's, or replace its value by its like, by a number, or by junk."""
    known = fields if rng.random() < 0.9 else {**fields, **other, "nonsense": None}
    if rng.random() < 0.95:
        known = {name: None for name in known if name not in ("model", "model_type")}
    name = rng.choice(sorted(known) or ["nonsense"])
    value = fields.get(name)
    chance = rng.random()
    if chance < 0.15:
        fields.pop(name, None)
    elif chance < 0.4:
        if name in other:
            fields[name] = copy.deepcopy(other[name])
    elif chance < 0.48:
        fields[name] = copy.deepcopy(rng.choice(_JUNK))
    elif isinstance(value, bool):
        fields[name] = not value
    elif isinstance(value, int) and chance < 0.7:
        fields[name] = rng.choice(_NUMBERS)
    elif isinstance(value, (int, float)):
        like = (value + 1, value - 1, value * 2, value * 1000, value // 2, -value, str(value))
        fields[name] = rng.choice(like)
    elif isinstance(value, dict):
        _spoil(rng, value, value)
    elif isinstance(value, str):
        fields[name] = rng.choice(_NAMES)
    elif isinstance(value, list) and value:
        fields[name] = rng.choice((value[1:], value * 2, [value], rng.sample(value, len(value))))
    else:
        fields[name] = rng.choice(_NUMBERS)


def finding(fields: dict[str, Any], formulas: str = "architecture") -> str | None:
    """Estimate a case; return what is wrong with the answer, or None."""
    before = repr(fields)
    begun = time.process_time()
    try:
        report = estimate(Case.from_dict(fields), formulas)
    except GpumemError as problem:
        sentence = str(problem)
        if not sentence or "\n" in sentence or len(sentence) > LONGEST_SENTENCE:
            return f"no clear sentence: {sentence!r}"
    except Exception:  # The very thing that is looked for: any error that is not the user's.
        return traceback.format_exc(limit=-3)
    else:
        wrong = impossible(report)
        if wrong:
            return wrong
    took = time.process_time() - begun
    if took > LONGEST_S:
        return f"took {took:.1f} s"
    return None if repr(fields) == before else "the input was changed"


def impossible(report: MemoryReport) -> str | None:
    """Return what a report says that cannot be, or None."""
    data = report.to_dict()
    try:
        json.dumps(data, allow_nan=False)
    except ValueError as problem:
        return f"no JSON: {problem}"
    sizes = {**data["components"], **data["parameters"]}
    sizes |= {name: size for name, size in data["peak"].items() if name.endswith("_bytes")}
    for phase in data["phases"]:
        sizes |= {f"{phase['name']} {name}": phase[name] for name in phase if name != "name"}
    for name, size in sizes.items():
        if size is None and name.endswith("_bytes"):
            continue
        if not isinstance(size, int) or size < 0:
            return f"{name} is {size}"
    peak = data["peak"]["allocated_bytes"]
    if sum(data["components"].values()) != peak:
        return "the components do not add up to the peak"
    if any(phase["peak_allocated_bytes"] > peak for phase in data["phases"]):
        return "a phase is above the peak"
    return None


def main() -> int:
    """Print the findings and how many cases were answered; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("-n", "--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = 0
    for index, fields in enumerate(spoiled_cases(options.seed, options.count)):
        for formulas in FORMULAS:
            wrong = finding(fields, formulas)
            if wrong is not None:
                found += 1
                print(f"{options.seed}/{index} {formulas}: {wrong}\n  {fields!r}", flush=True)
    print(f"{options.count} cases, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
