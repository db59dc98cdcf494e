"""What the page answers at once: our estimate, the article's, the cards. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.verdict import Verdict, judge
from app.web.form import ModelChoice, State, read_case, read_model, trainable_share
from app.web.link import case_json, command_line, to_query
from estimator import estimate
from estimator.article import (
    OPTIMIZER_RULES,
    PRECISION_BITS,
    estimate_article,
    inference_components,
    training_components,
)
from estimator.case import Case
from estimator.coefficients import matching_calibration
from estimator.errors import GpumemError, UnsupportedError
from estimator.gpus import Gpu, gpus
from estimator.report import Components, MemoryReport


@dataclass(frozen=True, slots=True)
class Article:
    """The article's answer; `trainable` is 0 in inference."""

    parameters: int
    trainable: int
    components: Components


@dataclass(frozen=True, slots=True)
class Card:
    """A card, and whether the run fits on it."""

    gpu: Gpu
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Taken:
    """What a visitor takes along. `query` is None where the state is too long for a link."""

    case_json: str
    command: str
    query: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one state of the form.

    `problem` is why there is no estimate of ours, `article_problem` why there is none of the
    article; each in one sentence. `cards` is empty without an estimate.
    """

    case: Case | None
    report: MemoryReport | None
    problem: str | None
    article: Article | None
    article_problem: str | None
    cards: tuple[Card, ...]
    taken: Taken | None


def answer(state: State) -> Answer:
    """Answer a state; nothing that a visitor can send raises."""
    try:
        model = read_model(state)
    except GpumemError as error:
        return Answer(None, None, str(error), None, None, (), None)
    case, report, problem = None, None, None
    try:
        case = read_case(state, model)
        report = _estimate(case)
    except GpumemError as error:
        problem = str(error)
    article, article_problem = None, None
    try:
        article = _article(state, model, case)
    except GpumemError as error:
        article_problem = str(error)
    return Answer(
        case,
        report,
        problem,
        article,
        article_problem,
        () if case is None or report is None else _cards(case, report),
        None if case is None else Taken(case_json(case), command_line(case), to_query(state)),
    )


def _estimate(case: Case) -> MemoryReport:
    """Return what `gpumem estimate` says: with the calibration that matches, where one does."""
    return estimate(case, calibration=matching_calibration(case))


def _article(state: State, model: ModelChoice, case: Case | None) -> Article | None:
    """Return the article's answer: from numbers as its calculator does, else from the case."""
    if model.numbers is not None:
        return _calculator(state, model)
    if case is None:
        return None
    report = estimate_article(case)
    return Article(report.parameters.total, report.parameters.trainable, report.components)


def _calculator(state: State, model: ModelChoice) -> Article:
    """Return what the seed's calculator shows, which can train what we say cannot be trained."""
    assert model.numbers is not None
    asked = {
        name: state[name]
        for name in ("dtype", "batch_size", "sequence_length", "quantization", "optimizer")
    }
    asked["quantization"] = None if asked["quantization"] == "none" else asked["quantization"]
    if state["task"] != "training":
        del asked["optimizer"]
    case = Case.from_dict({"model": model.model, **asked})
    shape, bits = model.numbers.article_shape(), PRECISION_BITS[case.quantization or case.dtype]
    batch, length = case.batch_size, case.sequence_length
    if state["task"] != "training":
        return Article(shape.parameters, 0, inference_components(shape, batch, length, bits))
    rule = OPTIMIZER_RULES.get(case.optimizer)
    if rule is None:
        raise UnsupportedError(
            f"the article has no rule for optimizer {case.optimizer}: "
            "choose an AdamW or SGD optimizer"
        )
    trainable = round(shape.parameters * trainable_share(state))
    parts = training_components(shape, batch, length, bits, rule, trainable)
    return Article(shape.parameters, trainable, parts)


def _cards(case: Case, report: MemoryReport) -> tuple[Card, ...]:
    """Judge every card, the smallest first, each with its own cuBLAS workspaces.

    Only the chosen one is played: there are dozens of others.
    """
    chosen = next((gpu for gpu in gpus() if gpu.name == case.gpu), None)
    reports: dict[int, MemoryReport] = {}
    if chosen is not None:
        reports[chosen.cublas_workspace_bytes] = report
    cards = []
    for gpu in sorted(gpus(), key=lambda gpu: (gpu.memory_mib, gpu.name)):
        size = gpu.cublas_workspace_bytes
        if size not in reports:
            reports[size] = _estimate(replace(case, gpu=gpu.name))
        cards.append(Card(gpu, judge(reports[size], gpu, play=gpu is chosen)))
    return tuple(cards)
