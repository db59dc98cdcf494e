"""Answers as HTML: what is shown, what is escaped, and that nothing that is sent raises."""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from app.web import evidence, render
from app.web.answer import answer
from app.web.fields import DEFAULTS, FIELDS
from app.web.form import clean_state
from app.web.render import render_answer, render_evidence, render_fits
from estimator import Case, estimate
from estimator.report import Components, Peak
from estimator.units import format_both
from profiler.record import Record

VOID = {"path", "circle", "i", "input", "line", "polygon"}


class Tags(HTMLParser):
    """Collects the tags, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(html: str) -> set[str]:
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    return set(parser.seen)


def texts(**fields: Any) -> str:
    pages = render_answer(clean_state(fields))
    return pages.summary + pages.main + pages.more


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"task": "training", "gpu": "A10"},
        {"task": "training", "method": "lora", "quantization": "nf4", "gpu": "none"},
        {"source": "numbers", "task": "training"},
        {"model": "nobody/knows"},
        {"optimizer": "adafactor", "task": "training"},
    ],
)
def test_the_html_is_well_formed_and_runs_nothing(form: dict[str, Any]) -> None:
    state = clean_state(form)
    found = tags(texts(**form) + render_fits(state))
    assert found & {"script", "iframe", "img", "link", "object", "style"} == set()


def test_the_answer_shows_what_a_visitor_came_for() -> None:
    shown = texts(task="training", gpu="A10", model="gpt2", batch_size=2)
    for part in (
        "GB</strong>",
        "GiB)",
        "at the peak",
        "In <b>",
        "A10 (23028 MiB): fits",
        "The smallest of",
        "The article's answer beside ours",
        "gpumem estimate openai-community/gpt2 --task training",
        "?model=gpt2&amp;task=training&amp;batch_size=2&amp;gpu=A10",
    ):
        assert part in shown


def test_an_interval_and_what_it_rests_on_are_shown_where_there_is_one() -> None:
    for form in ({"model": "Qwen/Qwen2.5-7B"}, {"task": "training", "method": "lora"}):
        state = clean_state(form)
        report = answer(state).report
        assert report is not None
        shown = unescape(render_answer(state).summary)
        if report.interval is None:
            assert "No interval: no calibration has evidence for such a run." in shown
        else:
            assert f"% interval: {format_both(report.interval.low_bytes)} to " in shown
            assert report.interval.basis in shown


def test_what_fits_shows_batch_length_changes_and_the_limit() -> None:
    shown = render_fits(clean_state({"task": "training", "gpu": "A10"}))
    for part in ("largest batch at length 1024", "longest sequence at batch 1", "<table class="):
        assert part in shown
    assert re.search(r'<a href="\?[^"]*method=lora[^"]*"', shown)
    shown = render_fits(clean_state({"model": "gpt2", "task": "training", "batch_size": 32}))
    assert "What to change" not in shown


def test_the_limit_is_drawn_between_what_fits_and_what_does_not() -> None:
    state = {"gpu": "RTX-4090", "batch_size": 8, "sequence_length": 4096}
    shown = render_fits(clean_state(state))
    assert "edge-right" in shown
    assert "edge-below" in shown
    assert "does not fit: " in shown


def test_names_are_escaped() -> None:
    config = {"model_type": "llama", "_name_or_path": "<img src=x onerror=alert(1)>"}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"intermediate_size": 128, "vocab_size": 100}
    text = json.dumps({**config, **sizes, **rest})
    shown = texts(source="config.json", config=text)
    assert "&lt;img src=x" in shown
    assert "<img" not in shown


def test_half_a_surrogate_pair_does_not_reach_the_answer() -> None:
    text = '{"model_type": "llama\\ud800", "hidden_size": 64}'
    shown = texts(source="config.json", config=text)
    assert shown.encode()


def test_evidence_is_the_stored_reports() -> None:
    shown = render_evidence()
    found = evidence.read_evidence()
    assert found.rows
    assert found.measured
    assert all(row.reference in shown for row in found.rows)
    assert "svg" in tags(shown)
    assert "simulated, not measured" in shown


def test_without_results_nothing_is_invented(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "REPORT", tmp_path / "none.json")
    monkeypatch.setattr(evidence, "SUITES", tmp_path / "none.json")
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records")
    evidence.read_evidence.cache_clear()
    render._render_answer.cache_clear()
    try:
        assert "Not at hand" in render_evidence()
        shown = texts()
        assert "Its known error is not at hand" in shown
        assert "Not at hand: this installation has no results folder" in shown
    finally:
        evidence.read_evidence.cache_clear()
        render._render_answer.cache_clear()


def test_the_projects_own_measurements_are_named_and_traced_ones_left_out(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case.from_dict({"model": "openai-community/gpt2", "gpu": "L4"})
    for source, size in (("cuda", 123_000_000), ("trace", 456_000_000)):
        report = replace(
            estimate(case),
            source=source,
            peak=Peak("decode", size, size),
            components=Components(weights_bytes=size),
        )
        record = Record.from_report(report, None, None)
        (tmp_path / f"{source}.json").write_text(record.to_json(), encoding="utf-8")
    monkeypatch.setattr(evidence, "RECORDS", tmp_path)
    evidence.read_evidence.cache_clear()
    try:
        nearest = evidence.nearest_cases(case)[0]
        assert nearest.measured.allocated_bytes == 123_000_000
        assert nearest.measured.source == "measured by this project"
        assert nearest.differs == ()
        sizes = [item.allocated_bytes for item in evidence.read_evidence().measured]
        assert 456_000_000 not in sizes
    finally:
        evidence.read_evidence.cache_clear()


def test_nearest_cases_are_of_the_same_task() -> None:
    for task in ("inference", "training"):
        case = Case.from_dict({"model": "Qwen/Qwen2-7B", "task": task})
        found = evidence.nearest_cases(case)
        assert len(found) == 3
        assert {item.measured.case.task for item in found} == {task}


def hostile_values(seed: int) -> dict[str, Any]:
    """Return a form in which a few fields hold what nobody would type."""
    rng = random.Random(seed)
    long_text = "".join(rng.choice(string.printable) for _ in range(rng.randint(1, 3000)))
    values = [
        *(-1, 0, 1e308, -1e308, 2**31 - 1, 2**31, 10**30, 10**400, 0.1, float("nan"), float("inf")),
        *(None, True, False, "", " ", "\0", "NaN", "1e9", "-0", "٣", "１２", "null", "none"),
        *("<script>alert(1)</script>", "'\"><svg onload=x>", "{{7*7}}", "{% raw %}", "${x}"),
        *("../../etc/passwd", "/proc/self/environ", "file:///x", "C:\\x", "~root", "a.json", "."),
        *("\ud800", "\u202e\u0000x", "🦙" * 400, "ﷺ" * 100, "%s%n", "'; drop table x", long_text),
        *([], {}, [1, [2]], {"a": {"b": None}}, ["path"], {"path": "/etc/passwd"}),
    ]
    configs = [
        "{" * 5000,
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
        '{"model_type": "llama", "x": ' + "[" * 400 + "]" * 400 + "}",
        '{"model_type": "llama", "num_hidden_layers": 1e999}',
        '{"model_type": "llama", "num_hidden_layers": ' + "9" * 5000 + "}",
        '{"model_type": 5}',
        '{"model_type": "\\ud800"}',
        '{"model_type": "llama", "text_config": {"model_type": ["x"]}}',
        '{"model_type": "gemma2", "hidden_size": 8, "num_hidden_layers": 10000, "head_dim": 8,'
        ' "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}',
        "\ufeff{}",
        long_text,
    ]
    names = [field.name for field in FIELDS]
    form: dict[str, Any] = {"source": rng.choice(["catalogue", "config.json", "numbers"])}
    form["task"] = rng.choice(["inference", "training"])
    form["method"] = rng.choice(["full", "lora"])
    form["config"] = rng.choice(configs)
    for name in rng.sample(names, rng.randint(1, 4)):
        form[name] = rng.choice(values)
    return form


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_hostile_forms(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        state = clean_state(hostile_values(seed))
        assert set(state) == set(DEFAULTS)
        pages = render_answer(state)
        shown = pages.summary + pages.main + pages.more + render_fits(state)
        assert shown.encode()
        assert tags(shown) & {"script", "img", "iframe"} == set()
        assert "Traceback" not in shown
        if pages.main == "":
            sentence = re.search(r'<p class="gm-problem">gpumem: (.*)</p>', pages.summary)
            assert sentence is not None
            assert 5 < len(sentence[1]) < 2000
