"""The answers as HTML. Everything a visitor typed is escaped; templates are in templates/."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from app.fitting import flags
from app.web.answer import Answer, answer
from app.web.charts import heat_map, parts, stacked_bar, timeline
from app.web.evidence import known_error, nearest_cases, read_evidence
from app.web.fields import BY_NAME, is_shown
from app.web.fits import fits
from app.web.form import State, clean_state
from app.web.link import to_query
from benchmarks.scatter import draw_scatter
from estimator.report import COMPONENTS
from estimator.units import GB, GIB, format_both, format_error, relative_error

COMMON_CARDS = (
    "RTX-4060-Ti-8GB",
    "RTX-3060-12GB",
    "T4",
    "L4",
    "RTX-4090",
    "RTX-5090",
    "A100-40GB",
    "L40S",
    "H100",
    "A100-80GB",
    "H200",
    "B200",
)
"""Cards that are always listed; the others are behind a fold."""

_REMEMBERED = 64
"""Answers kept: people go back and forth between a few."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What `answer` fills: the summary, what is below it, and what stands at the end."""

    summary: str
    main: str
    more: str


def render_answer(state: State) -> Pages:
    """Return the answer to a state as HTML."""
    return _render_answer(tuple(state.items()))


def render_fits(state: State) -> str:
    """Return what would fit as HTML; empty where there is no estimate."""
    return _render_fits(tuple(state.items()))


@lru_cache(maxsize=_REMEMBERED)
def _render_answer(items: tuple[tuple[str, Any], ...]) -> Pages:
    found = answer(dict(items))
    if found.report is None:
        summary = _render("problem", problem=found.problem)
        return Pages(summary, "", _more(found))
    chosen = next((c for c in found.cards if found.case and c.gpu.name == found.case.gpu), None)
    summary = _render("summary", report=found.report, case=found.case, chosen=chosen)
    shown = parts(found.report)
    main = _render(
        "main",
        report=found.report,
        parts=shown,
        bar=stacked_bar(shown),
        counters=found.report.counters(),
        timeline=timeline(
            found.report.phases,
            None if chosen is None else chosen.gpu.memory_bytes,
            None if chosen is None else chosen.gpu.name,
        ),
        chosen=chosen,
        smallest=next((card for card in found.cards if card.verdict.state == "fits"), None),
        common=[c for c in found.cards if c.gpu.name in COMMON_CARDS or c is chosen],
        cards=found.cards,
    )
    return Pages(summary, main, _more(found))


def _more(found: Answer) -> str:
    case = found.case
    return _render(
        "more",
        answer=found,
        components=COMPONENTS,
        article_errors=() if case is None else known_error(case, "article"),
        our_errors=() if case is None else known_error(case, "architecture"),
        nearest=() if case is None or found.report is None else nearest_cases(case),
        has_measured=bool(read_evidence().measured),
    )


@lru_cache(maxsize=_REMEMBERED)
def _render_fits(items: tuple[tuple[str, Any], ...]) -> str:
    state = dict(items)
    found = fits(state)
    if found is None:
        return ""
    changes = () if found.changes is None else found.changes.tried
    return _render(
        "fits",
        fits=found,
        heat_map=heat_map(found),
        changes=[
            (item, flags(item.change.fields), _changed_link(state, item.change.fields))
            for item in changes
        ],
    )


def _changed_link(state: State, changed: dict[str, Any]) -> str | None:
    """Return the link to the state with a case's fields changed."""
    new = clean_state({**state, **changed})
    return to_query(new) if all(is_shown(BY_NAME[name], new) for name in changed) else None


def render_evidence() -> str:
    """Return the evidence tab as HTML."""
    evidence = read_evidence()
    scatter = None
    if evidence.series:
        scatter = draw_scatter(evidence.series, "measured by others, GB", "predicted, GB")
    return _render("evidence", evidence=evidence, scatter=scatter, has_any=bool(evidence.rows))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_valid_text,
    )
    environment.filters.update(
        both=format_both,
        gb=lambda size: f"{size / GB:.2f}",
        gib=lambda size: f"{size / GIB:.2f}",
        percent=lambda share: f"{100 * share:.3f} %",
        signed=format_error,
        words=lambda name: str(name).replace("_", " "),
        digits=lambda number: f"{number:,}".replace(",", " "),
        short=lambda text: text if len(text) <= 90 else text[:89] + "…",
    )
    environment.globals.update(relative_error=relative_error)
    return environment


def _valid_text(value: Any) -> Any:
    """JSON may name half a surrogate pair, which no answer can be sent with."""
    if type(value) is str and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(f"{name}.html.j2").render(**values)
