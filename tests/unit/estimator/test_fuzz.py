"""Spoiled configurations and cases: a report without impossible sizes, or one clear sentence.

`python -m benchmarks.fuzz --count 10000` draws more of them.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import finding, impossible, spoiled_case
from estimator import estimate
from estimator.case import Case
from estimator.catalogue import find_model
from estimator.errors import ModelError, UnsupportedError
from estimator.report import Components, MemoryReport, Parameters, Peak, Phase


@settings(max_examples=1500, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_estimate_is_a_report_or_one_sentence(seed: int) -> None:
    fields = spoiled_case(random.Random(seed))
    assert finding(fields) is None, fields


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_article_answers_or_says_why_not(seed: int) -> None:
    fields = spoiled_case(random.Random(seed))
    assert finding(fields, "article") is None, fields


def report(**components: int) -> MemoryReport:
    peak = Peak("forward", requested_bytes=10, allocated_bytes=10)
    phases = (Phase("forward", 10, 5),)
    return MemoryReport(
        "architecture", {}, Parameters(1, 1), peak, phases, Components(**components)
    )


def test_what_cannot_be_is_found() -> None:
    assert impossible(report(weights_bytes=10)) is None
    assert impossible(report(weights_bytes=12, temporaries_bytes=-2)) == "temporaries_bytes is -2"
    assert "add up" in str(impossible(report(weights_bytes=9)))


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("Llama-3.2-1B", "hidden_act"),
        ("CohereLabs/c4ai-command-r-v01", "hidden_act"),
        ("facebook/opt-1.3b", "activation_function"),
        ("Qwen/Qwen3-30B-A3B", "hidden_act"),
    ],
)
def test_xielu_is_refused_where_it_has_no_formula(model: str, field: str) -> None:
    config = {**find_model(model).config, field: "xielu"}
    with pytest.raises(UnsupportedError, match="activation 'xielu'"):
        estimate(Case.from_dict({"model": config}))


@pytest.mark.parametrize("layers", [2**31, 2**63])
def test_more_layers_than_any_model_has_are_refused_at_once(layers: int) -> None:
    config = {**find_model("Llama-3.2-1B").config, "num_hidden_layers": layers}
    with pytest.raises(ModelError, match=rf"num_hidden_layers is {layers}"):
        estimate(Case.from_dict({"model": config}))
