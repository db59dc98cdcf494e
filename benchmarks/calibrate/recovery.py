"""Does a fit find coefficients that are known, and does an interval hold what it promises?

`python -m benchmarks.calibrate.recovery`. Runs are made up: real estimates, and counters that
follow from them by known coefficients, with an error of each run's own; and ratios of measured to
predicted bytes of families with effects of their own. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.calibrate.answers import Answered, answer_runs
from benchmarks.calibrate.evidence import Run, family_of
from benchmarks.calibrate.fits import MODELS, Model
from benchmarks.calibrate.intervals import Ratios, two_sided, upper_bound
from benchmarks.calibrate.least_squares import RESAMPLES, fit_with_intervals
from estimator.case import Case

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.calibrate.least_squares import Array

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
    "correction_inference": 0.1,
    "correction_training": 0.2,
    "beyond_inference": 0.15,
    "beyond_training": 0.3,
    "context_A100-80GB": 4.5e8,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """How far made-up ratios lie apart: see `made_up_ratios`."""

    families: int
    between: float
    within: float


SPREADS = (
    Spread(4, 0.02, 0.01),
    Spread(8, 0.02, 0.01),
    Spread(8, 0.05, 0.005),
    Spread(20, 0.0, 0.02),
)

_NEW_RUNS = 500

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


def made_up_models() -> tuple[Model, ...]:
    """Return every fit's equations over made-up runs."""
    runs = made_up_runs()
    return tuple(build(runs) for build in MODELS)


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


def made_up_ratios(
    random: np.random.Generator, families: int, runs: int, between: float, within: float
) -> tuple[Array, list[str]]:
    """Return measured / predicted of made-up families, each with an effect of its own.

    Args:
        runs: of a family, about.
        between: standard deviation of the families' effects, relative.
        within: that of the runs in a family.
    """
    import numpy as np

    ratios: list[float] = []
    names: list[str] = []
    for number in range(families):
        count = int(random.integers(runs // 2, 2 * runs))
        effect = random.normal(0, between)
        ratios += np.exp(effect + random.normal(0, within, count)).tolist()
        names += [f"family {number}"] * count
    return np.array(ratios), names


def held_of_new_families(one_sided: bool, spread: Spread, trials: int, seed: int = 0) -> float:
    """Return the mean share that intervals held of the runs of families that they never saw."""
    import numpy as np

    random = np.random.default_rng(seed)
    held = []
    for _ in range(trials):
        made_up = made_up_ratios(random, spread.families, 20, spread.between, spread.within)
        found = (upper_bound if one_sided else two_sided)(*made_up)
        if isinstance(found, Ratios):
            effects = random.normal(0, spread.between, _NEW_RUNS)
            new = np.exp(effects + random.normal(0, spread.within, _NEW_RUNS))
            held.append(float(((new >= (found.low or 0)) & (new <= found.high)).mean()))
    return sum(held) / len(held)


def study(trials: int, resamples: int) -> dict[str, Any]:
    """Return what `main` prints, as a JSON object."""
    return {
        "trials": trials,
        "recovered": recovered(made_up_models(), TRUTH, trials, resamples),
        "held_of_new_families": [
            {
                "families": spread.families,
                "between": spread.between,
                "within": spread.within,
                "two_sided": round(held_of_new_families(False, spread, trials), 4),
                "one_sided": round(held_of_new_families(True, spread, trials), 4),
            }
            for spread in SPREADS
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    """Print in how many trials all coefficients were found, and what intervals held; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibrate.recovery", description=__doc__
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it as JSON")
    options = parser.parse_args(arguments)
    found = study(options.trials, options.resamples)
    for name, count in found["recovered"].items():
        print(f"{name}: all coefficients inside their intervals in {count} of {options.trials}")
    for row in found["held_of_new_families"]:
        print(
            f"{row['families']} families, {row['between']:.1%} between and {row['within']:.1%} "
            f"within them: 90 % intervals held {row['two_sided']:.1%} of new families, "
            f"95 % bounds {row['one_sided']:.1%}"
        )
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
