"""The fits: which coefficients explain which counter, from which runs.

Each is a linear system over the runs that have its counter (benchmarks/calibrate/least_squares.py).
There is no free constant in any of them: a number that has no meaning of its own would absorb the
runs at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.calibrate.answers import Answered
from benchmarks.calibrate.least_squares import System, Term
from estimator.article import CALCULATOR
from estimator.calibrated import capped, context_name, moving_bytes
from estimator.case import TASKS
from estimator.coefficients import ANY_GPU
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES
from estimator.report import MemoryReport
from estimator.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable

MANY_BYTES = 2**62
"""More than any card has."""

CONTEXT_MOST_BYTES = 2 * GIB
"""Bound of a context: with other libraries' allocations it may be above the CUDA context's own."""


_ANY_CONTEXT = f"context_{ANY_GPU}"


@dataclass(frozen=True, slots=True)
class Equation:
    """One run: measured = offset + sum(value of a term x its feature), in bytes, at most `most`."""

    run: Answered
    measured: int
    offset: int
    features: dict[str, float]
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Model:
    """A fit to be made: terms, and the runs as equations."""

    name: str
    formulas: str
    counter: str
    terms: tuple[Term, ...]
    equations: tuple[Equation, ...]

    @property
    def families(self) -> list[str]:
        """The model family of each equation."""
        return [equation.run.run.family for equation in self.equations]

    def system(self) -> System:
        """Return the equations as arrays."""
        import numpy as np

        names = [term.name for term in self.terms]
        return System(
            measured=np.array([item.measured for item in self.equations], np.float64),
            offset=np.array([item.offset for item in self.equations], np.float64),
            features=np.array(
                [[item.features.get(name, 0.0) for name in names] for item in self.equations],
                np.float64,
            ).reshape(len(self.equations), len(names)),
            most=np.array([item.most for item in self.equations], np.float64),
        )


def article_model(runs: Sequence[Answered]) -> Model:
    """The article's own constants, on peak allocated bytes.

    Its factor 4 on activations cannot be told from the two coefficients it multiplies; it stays.
    """
    scale = CALCULATOR.activation_scale
    terms = (
        Term("activation_linear", "B/(token x unit)", CALCULATOR.activation_linear, 0, 200),
        Term("activation_scores", "B/(token² x head)", CALCULATOR.activation_scores, 0, 20),
        Term("gradient_bytes", "B/parameter", CALCULATOR.gradient_bytes, 0, 8),
        *(
            Term(f"{rule}_bytes", "B/parameter", nominal, 0, 2 * nominal)
            for rule in ("adamw", "adamw_quantized", "sgd")
            for nominal in (CALCULATOR.optimizer_bytes(rule),)
        ),
    )
    equations = []
    for item in runs:
        report, shape, case = item.article, item.shape, item.run.case
        if report is None or shape is None or "allocated" not in item.run.counters:
            continue
        tokens = scale * case.batch_size * case.sequence_length
        features: dict[str, float] = {
            "activation_linear": tokens * shape.hidden_size,
            "activation_scores": tokens * case.sequence_length * shape.heads,
        }
        if case.training:
            features["gradient_bytes"] = report.parameters.trainable
            features[f"{item.rule}_bytes"] = report.parameters.trainable
        parts = report.components
        offset = parts.weights_bytes + parts.kv_cache_bytes
        equations.append(Equation(item, item.run.counters["allocated"], offset, features))
    return Model("article", "article", "allocated", terms, tuple(equations))


def scratch_model(runs: Sequence[Answered]) -> Model:
    """Factors on cuBLAS workspaces and on kernels' temporaries at the peak."""
    terms = (
        Term("workspace_scale", "x workspaces", 1, 0, 8),
        Term("temporaries_scale", "x temporaries", 1, 0.5, 2),
    )
    equations = []
    for item, report, measured in _with_counter(runs, "allocated"):
        parts = report.components
        features = {
            "workspace_scale": float(parts.workspace_bytes),
            "temporaries_scale": float(parts.temporaries_bytes),
        }
        offset = report.peak.allocated_bytes - parts.workspace_bytes - parts.temporaries_bytes
        equations.append(Equation(item, measured, offset, features))
    return Model("scratch", "architecture", "allocated", terms, tuple(equations))


def fragmentation_model(runs: Sequence[Answered]) -> Model:
    """From allocated to reserved bytes, or a correction of reserved bytes of the formulas' own."""
    found, own = _based(_with_counter(runs, "reserved"))
    name, least = ("correction", -0.5) if own else ("fragmentation", 0.0)
    terms = tuple(Term(f"{name}_{task}", "of moving bytes", 0, least, 2) for task in TASKS)
    equations = []
    for item, report, measured in found:
        features = {f"{name}_{item.run.case.task}": float(_moving(report))}
        equations.append(Equation(item, measured, _base(report), features, _most(item, report)))
    return Model("fragmentation", "architecture", "reserved", terms, tuple(equations))


def device_model(runs: Sequence[Answered]) -> Model:
    """From allocated to device bytes: what the allocator keeps cached, and the CUDA context.

    Where the formulas give reserved bytes themselves, from those. The context has a coefficient a
    card; `any` is the typical one for cards without evidence.
    """
    found, own = _based(_with_counter(runs, "device"))
    name = "beyond" if own else "cache"
    contexts = sorted({context_name(item.run.case) for item, _, _ in found} - {_ANY_CONTEXT})
    terms = (
        *(Term(f"{name}_{task}", "of moving bytes", 0, 0, 2) for task in TASKS),
        *(_context_term(context) for context in [*contexts, _ANY_CONTEXT]),
    )
    equations = []
    for item, report, measured in found:
        features = {
            f"{name}_{item.run.case.task}": float(_moving(report)),
            context_name(item.run.case): 1.0,
        }
        equations.append(Equation(item, measured, _base(report), features, _most(item, report)))
    return Model("device", "architecture", "device", terms, tuple(equations))


def context_model(runs: Sequence[Answered]) -> Model:
    """What the driver shows above reserved bytes, by card: the CUDA context and other libraries.

    Both counters are measured, and no estimate is in it. A check on the contexts of
    `device_model`, which have to make up for what its other terms miss; estimates do not use it.
    """
    both = [item for item in runs if {"reserved", "device"} <= item.run.counters.keys()]
    terms = tuple(
        _context_term(context) for context in sorted({context_name(item.run.case) for item in both})
    )
    equations = []
    for item in both:
        counters = item.run.counters
        features = {context_name(item.run.case): 1.0}
        equations.append(Equation(item, counters["device"], counters["reserved"], features))
    return Model("context", "measured", "device", terms, tuple(equations))


MODELS: tuple[Callable[[Sequence[Answered]], Model], ...] = (
    article_model,
    scratch_model,
    fragmentation_model,
    device_model,
    context_model,
)


def _context_term(name: str) -> Term:
    return Term(name, "B", (CONTEXT_LOW_BYTES + CONTEXT_HIGH_BYTES) / 2, 0, CONTEXT_MOST_BYTES)


Found = list[tuple[Answered, MemoryReport, int]]
"""Runs with an estimate and the measured bytes of one counter."""


def _with_counter(runs: Iterable[Answered], counter: str) -> Found:
    return [
        (item, item.architecture, item.run.counters[counter])
        for item in runs
        if item.architecture is not None and counter in item.run.counters
    ]


def _based(found: Found) -> tuple[Found, bool]:
    """Return the runs that share a base, and whether it is reserved bytes of the formulas' own."""
    own = [row for row in found if row[1].peak.reserved_bytes is not None]
    return own or found, bool(own)


def _base(report: MemoryReport) -> int:
    reserved = report.peak.reserved_bytes
    return report.peak.allocated_bytes if reserved is None else reserved


def _moving(report: MemoryReport) -> int:
    return moving_bytes(report.peak, report.components)


def _most(item: Answered, report: MemoryReport) -> int:
    return capped(MANY_BYTES, report.peak.allocated_bytes, item.run.case.gpu)
