"""How well a traced surface agrees with the trace, and how fast it and a grid of estimates are.

python -m benchmarks.performance.surface [--points N] [--seed N]

Points are drawn at random and traced; none of them is one that the surface was derived from.
Every figure that is printed is computed in this run.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from estimator.case import Case
from estimator.fit import grid
from estimator.report import Peak
from estimator.surface import Surface, UnknownRegion

CASES: tuple[dict[str, Any], ...] = (
    {"model": "gpt2", "task": "training"},
    {"model": "gpt2", "task": "training", "attention": "eager", "optimizer": "adamw_torch"},
    {"model": "Llama-3.2-1B", "task": "training", "method": "lora", "gradient_checkpointing": True},
    {"model": "Llama-3.2-1B", "task": "training", "method": "lora", "quantization": "nf4"},
    {"model": "Llama-3.2-1B", "max_new_tokens": 32},
    {"model": "google/gemma-3-1b-pt", "max_new_tokens": 32},
)
BATCHES = tuple(range(1, 101))
LENGTHS = tuple(range(128, 128 + 81 * 100, 81))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line a case, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=100, help="left-out points in all")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    rng = random.Random(asked.seed)
    exact: list[float] = []
    meshed: list[float] = []
    asked_for: list[float] = []
    share = -(-asked.points // len(CASES))
    for fields in CASES:
        case = Case.from_dict(fields)
        points, cells, requests = [], [], []
        started = time.process_time()
        surface = _derived(case)
        derived_s = time.process_time() - started
        for point, traced in _left_out(case, surface, rng, share):
            axes = [point[0]], [point[1]]
            points.append(surface.point(*point).allocated_bytes / traced.allocated_bytes - 1)
            cells.append(surface.grid(*axes)[0][0] / traced.allocated_bytes - 1)
            requested = surface.grid(*axes, counter="requested")[0][0]
            requests.append(requested / (traced.requested_bytes or 1) - 1)
        exact += points
        meshed += cells
        asked_for += requests
        print(
            f"{case.label}: surface in {derived_s:.1f} CPU s; {len(points)} points: "
            f"point worst {_worst(points)}, grid {_spread(cells)}, "
            f"of requested bytes {_spread(requests)}; "
            f"{_grid_times(case, surface)}",
            flush=True,
        )
    print(
        f"all {len(exact)} points: point worst {_worst(exact)}, grid {_spread(meshed)}, "
        f"of requested bytes {_spread(asked_for)}"
    )


def _derived(case: Case) -> Surface:
    from profiler.trace.surface import extend, new_surface

    surface = new_surface(case)
    for batch in BATCHES:
        for length in LENGTHS:
            extend(surface, case, batch, length)
    return surface


def _left_out(
    case: Case, surface: Surface, rng: random.Random, count: int
) -> Iterator[tuple[tuple[int, int], Peak]]:
    from profiler.surface_cache import at
    from profiler.trace import trace_case
    from profiler.trace.surface import extend

    for _ in range(count):
        point = (rng.choice((1, 2, 3, 4, 8, 16, 32)), rng.randint(64, 8192))
        try:
            surface.stream(*point)
        except UnknownRegion:
            extend(surface, case, *point)
        yield point, trace_case(at(case, *point)).peak


def _grid_times(case: Case, surface: Surface) -> str:
    started = time.process_time()
    surface.grid(BATCHES, LENGTHS)
    traced = time.process_time()
    grid(case, BATCHES, LENGTHS)
    estimated = time.process_time()
    count = len(BATCHES) * len(LENGTHS)
    return (
        f"{count} points: surface {traced - started:.2f} CPU s, "
        f"estimates {estimated - traced:.2f} CPU s"
    )


def _worst(errors: Sequence[float]) -> str:
    return f"{100 * max(errors, key=abs):+.4f} %"


def _spread(errors: Sequence[float]) -> str:
    sizes = sorted(map(abs, errors))
    return f"median {100 * sizes[len(sizes) // 2]:.3f} %, worst {_worst(errors)}"


if __name__ == "__main__":
    main()
