"""Evidence beside what the formulas say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.calibrate.evidence import Run
from estimator import estimate
from estimator.article import OPTIMIZER_RULES, ArticleShape, read_shape
from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import GpumemError
from estimator.report import MemoryReport

Estimator = Callable[[Case, str], MemoryReport]


@dataclass(frozen=True, slots=True)
class Answered:
    """A measured run, and both formulas' estimates of it; None where they have none."""

    run: Run
    architecture: MemoryReport | None
    article: MemoryReport | None
    shape: ArticleShape | None

    @property
    def rule(self) -> str | None:
        """The article's rule for the optimizer, None in inference."""
        return OPTIMIZER_RULES.get(self.run.case.optimizer) if self.run.case.training else None


@dataclass(frozen=True, slots=True)
class Answers:
    """All runs, and why some have no estimate: (reason, how many runs), the most frequent first."""

    runs: tuple[Answered, ...]
    unanswered: tuple[tuple[str, int], ...]


def answer_runs(runs: Iterable[Run], estimator: Estimator = estimate) -> Answers:
    """Estimate every run's case by both sets of formulas."""
    answered = []
    reasons: Counter[str] = Counter()
    for run in runs:
        architecture = _ask(run, "architecture", estimator, reasons)
        article = _ask(run, "article", estimator, reasons)
        shape = None if article is None else read_shape(load_config(run.case.model))
        if architecture is not None or article is not None:
            answered.append(Answered(run, architecture, article, shape))
    return Answers(tuple(answered), tuple(reasons.most_common()))


def _ask(
    run: Run, formulas: str, estimator: Estimator, reasons: Counter[str]
) -> MemoryReport | None:
    try:
        return estimator(run.case, formulas)
    except GpumemError as error:
        reasons[f"{formulas}: {error}"] += 1
        return None
