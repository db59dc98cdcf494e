"""The measurements: importing the library, one estimate, the command line from cold, a trace.

What starts a process is timed in a fresh one, as a user would wait for it; the fastest of several
runs is the figure that other load on the machine disturbs least.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REPEATS = 7

_MODEL = "Llama-3.1-8B"
_CASE = {"model": _MODEL, "task": "training", "gradient_checkpointing": True}
_LARGE_CASE = {
    "model": "Llama-3.1-70B",
    "task": "training",
    "method": "lora",
    "quantization": "nf4",
    "gradient_checkpointing": True,
}
_DELTA_NETS = "Qwen/Qwen3.5-9B"
_ACCELERATE = """
import sys, types
from accelerate.commands import estimate
known = types.SimpleNamespace(library_name="transformers", config={})
estimate.verify_on_hub = lambda *_: known
parser = estimate.estimate_command_parser()
estimate.estimate_command(parser.parse_args([sys.argv[1], "--library_name", "transformers"]))
"""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that something took, over several runs."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def fastest_s(self) -> float:
        """The fastest run."""
        return min(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the timing as a JSON object."""
        return asdict(self)


def timed(name: str, run: Callable[[], object], repeats: int = REPEATS) -> Timing:
    """Time `run` so many times."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return Timing(name, tuple(seconds))


def _process(*arguments: str) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def import_estimator(name: str) -> Timing:
    """A Python process that imports the library and ends."""
    return timed(name, _process("-c", "import estimator"))


def one_estimate(name: str) -> Timing:
    """An estimate in a process that has made one before."""
    from estimator import Case, estimate

    case = Case.from_dict(_CASE)
    estimate(case)
    return timed(name, lambda: estimate(case), repeats=50)


def estimates_of_70b(name: str) -> Timing:
    """A QLoRA estimate of a 70B model, each of another length: no block is remembered."""
    return timed(name, _fresh(_LARGE_CASE), repeats=200)


def _fresh(fields: dict[str, Any]) -> Callable[[], object]:
    """Return what estimates a case at another length each time."""
    from estimator import Case, estimate

    case = Case.from_dict(fields)
    estimate(case)
    lengths = itertools.count(case.sequence_length + 1)
    return lambda: estimate(replace(case, sequence_length=next(lengths)))


def estimates_of_the_catalogue(name: str) -> Timing:
    """Each catalogue model that has formulas, trained with checkpointing at lengths never seen:
    the median of a few for each model."""
    from estimator.catalogue import entries
    from estimator.errors import UnsupportedError

    seconds = []
    for entry in entries():
        with contextlib.suppress(UnsupportedError):
            run = _fresh({**_CASE, "model": entry.name, "sequence_length": 900})
            seconds.append(timed(name, run, repeats=5).median_s)
    return Timing(name, tuple(seconds))


def estimates_of_delta_nets(name: str) -> Timing:
    """Training a model of delta nets at lengths never seen around 16 384 tokens."""
    fields = {**_CASE, "model": _DELTA_NETS, "sequence_length": 16_384}
    return timed(name, _fresh(fields), repeats=50)


def grid_of_70b(name: str) -> Timing:
    """10 000 points of batch size and length in one call."""
    from estimator import Case
    from estimator.grid import grid

    case = Case.from_dict(_LARGE_CASE)
    batches, lengths = range(1, 101), range(128, 128 * 101, 128)
    return timed(name, lambda: grid(case, batches, lengths))


def cold_command(name: str) -> Timing:
    """`gpumem estimate` from the shell."""
    return timed(name, _process("-m", "app", "estimate", _MODEL, "--task", "training"))


def accelerate_command(name: str) -> Timing:
    """`accelerate estimate-memory` of the same model, spared its request to the Hub.

    The configuration lies in a folder, and what the Hub would say of it is put in its place: what
    is timed is the rest of the command's own code.
    """
    from estimator.config_source import load_config

    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(load_config(_MODEL).config)
        Path(folder, "config.json").write_text(text, encoding="utf-8")
        return timed(name, _process("-c", _ACCELERATE, folder))


def trace_of_8b(name: str) -> Timing:
    """A traced training step of an 8B model, without the imports."""
    from estimator.case import Case
    from profiler.trace import trace_case

    case = Case.from_dict(_CASE)
    return timed(name, lambda: trace_case(case), repeats=3)


MEASUREMENTS: dict[str, tuple[Callable[[str], Timing], bool]] = {
    "import estimator": (import_estimator, False),
    "one estimate": (one_estimate, False),
    "gpumem estimate, cold": (cold_command, False),
    "70B QLoRA estimate, another length each": (estimates_of_70b, False),
    "each catalogue model, another length each": (estimates_of_the_catalogue, False),
    "delta nets, 16 384 tokens and on": (estimates_of_delta_nets, False),
    "70B QLoRA grid of 10 000 points": (grid_of_70b, False),
    "accelerate estimate-memory, cold": (accelerate_command, True),
    "trace of an 8B training step": (trace_of_8b, True),
}
"""What is measured by name, and whether it is slow."""
