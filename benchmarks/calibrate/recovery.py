"""Does a fit find coefficients that are known? `python -m benchmarks.calibrate.recovery`.

Runs are made up: real estimates, and counters that follow from them by known coefficients, with an
error of each run's own. Nothing here is a measurement, and nothing of it is stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from benchmarks.calibrate.answers import Answered, answer_runs
from benchmarks.calibrate.evidence import Run, family_of
from benchmarks.calibrate.fits import MODELS, Model
from benchmarks.calibrate.least_squares import RESAMPLES, fit_with_intervals
from estimator.case import Case

if TYPE_CHECKING:
    import numpy as np

FAMILIES = ("gpt2", "Llama-3.2-1B", "Mistral-7B-v0.1", "phi-2", "Qwen2.5-1.5B", "gemma-2-2b")

TRUTH = {
    "activation_linear": 21.0,
    "activation_scores": 3.5,
    "gradient_bytes": 2.0,
    "adamw_bytes": 4.0,
    "adamw_quantized_bytes": 2.6,
    "sgd_bytes": 1.0,
    "workspace_scale": 2.0,
    "temporaries_scale": 1.2,
    "fragmentation_inference": 0.1,
    "fragmentation_training": 0.2,
    "cache_inference": 0.15,
    "cache_training": 0.3,
    "context_A100-80GB": 4.5e8,
}

NOISE = 0.01
"""Standard deviation of a run's own relative error."""


def made_up_runs() -> tuple[Answered, ...]:
    """Return estimated runs of several model families, each counter still 1 byte."""
    runs = []
    for model, length, how in product(FAMILIES, (512, 1024), range(4)):
        case = Case.from_dict({"model": model, "gpu": "A100-80GB", **_settings(how, length)})
        counters = dict.fromkeys(("allocated", "reserved", "device"), 1)
        runs.append(Run((case.case_id,), case, family_of(case), counters, "made up"))
    return answer_runs(runs).runs


def _settings(how: int, length: int) -> dict[str, object]:
    if how == 0:
        return {"task": "inference", "batch_size": 8, "sequence_length": length}
    optimizer = ("adamw_torch_fused", "adamw_bnb_8bit", "sgd")[how - 1]
    shape = {"batch_size": 2 * how, "sequence_length": length}
    return {"task": "training", "optimizer": optimizer, **shape}


def follow(
    model: Model, truth: Mapping[str, float], random: np.random.Generator, noise: float = NOISE
) -> Model:
    """Return a fit's equations with measured bytes that follow from known coefficients."""
    equations = []
    for item in model.equations:
        exact = item.offset + sum(truth[name] * size for name, size in item.features.items())
        measured = round(exact * (1 + noise * float(random.normal())))
        equations.append(replace(item, measured=measured))
    return replace(model, equations=tuple(equations))


def recovered(
    models: Sequence[Model],
    truth: Mapping[str, float],
    trials: int,
    resamples: int = RESAMPLES,
) -> dict[str, int]:
    """Return, by fit, in how many seeded trials all its intervals held the known coefficients."""
    import numpy as np

    found = {model.name: 0 for model in models}
    for seed in range(trials):
        random = np.random.default_rng(seed)
        for model in models:
            system = follow(model, truth, random).system()
            solution = fit_with_intervals(system, model.terms, seed, resamples)
            found[model.name] += all(
                solution.low[place] <= truth[term.name] <= solution.high[place]
                for place, term in enumerate(model.terms)
                if solution.known[place]
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print, for each fit, in how many trials it recovered all its coefficients; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibrate.recovery", description=__doc__
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    options = parser.parse_args(arguments)
    models = [build(made_up_runs()) for build in MODELS]
    for name, count in recovered(models, TRUTH, options.trials, options.resamples).items():
        print(f"{name}: all coefficients inside their intervals in {count} of {options.trials}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
