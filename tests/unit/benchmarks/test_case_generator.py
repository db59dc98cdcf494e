"""Random cases: every type, every axis, and draws that additions leave as they were."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks import case_generator, drawn_models
from benchmarks.case_generator import QUICK, draw_cases
from benchmarks.drawn_models import MADE_UP, Bounds, slots
from estimator.case import (
    ATTENTIONS,
    DTYPES,
    LOSSES,
    MIXED_PRECISIONS,
    OPTIMIZERS,
    QUANTIZATIONS,
    Case,
)
from estimator.config_source import load_config
from estimator.families import PARSERS, parse_spec

COUNT = 1500


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    return list(draw_cases(1101, COUNT))


def model_type(case: Case) -> str:
    return load_config(case.model).model_type


def test_every_type_with_formulas_is_drawn_often(drawn: list[Case]) -> None:
    counts = Counter(model_type(case) for case in drawn)
    assert set(counts) == set(PARSERS), "types without a model: add a base configuration"
    assert min(counts.values()) >= 10


def test_every_value_of_every_axis_is_drawn(drawn: list[Case]) -> None:
    values: dict[str, Any] = {
        "task": {"inference", "training"},
        "dtype": set(DTYPES),
        "quantization": set(QUANTIZATIONS),
        "double_quantization": {False, True},
        "prepare_kbit": {False, True},
        "method": {"full", "lora"},
        "mixed_precision": set(MIXED_PRECISIONS),
        "gradient_checkpointing": {False, True},
        "gradient_accumulation_steps": {1, 2},
        "momentum": {0.0, 0.9},
        "attention": set(ATTENTIONS),
        # The trace knows no paged cache.
        "cache": {"dynamic", "static", "quantized"},
        "keep_logits": {False, True},
        "loss": set(LOSSES),
        "batch_size": set(range(1, 17)),
    }
    for name, expected in values.items():
        assert {getattr(case, name) for case in drawn} == expected, name
    unknown = set(OPTIMIZERS) - {case.optimizer for case in drawn if case.training}
    assert unknown <= {"adamw_8bit", "rmsprop_bnb_32bit", "paged_ademamix_32bit"} | {
        "paged_lion_32bit"
    }
    adapters = [case.lora for case in drawn if case.lora is not None]
    assert {lora.use_dora for lora in adapters} == {False, True}
    assert {lora.lora_dropout > 0 for lora in adapters} == {False, True}
    assert {lora.target_modules == "all-linear" for lora in adapters} == {False, True}


def test_sizes_are_within_the_bounds(drawn: list[Case]) -> None:
    whole = [load_config(case.model) for case in drawn]
    known = [config for config in whole if config.origin == "catalogue"]
    assert len(known) > COUNT / 5
    for config in whole:
        size = parse_spec(config).parameters
        # Made-up ones have embeddings on top of what is drawn.
        assert 0.1e9 <= size <= (70e9 if config.model_type not in MADE_UP else 90e9)
    lengths = [case.sequence_length for case in drawn]
    assert min(lengths) < 200
    assert 15_000 < max(lengths) <= 16_384


def test_the_same_seed_draws_the_same_cases(drawn: list[Case]) -> None:
    # A case does not depend on how many are drawn.
    assert list(draw_cases(1101, 30)) == drawn[:30]
    assert list(draw_cases(1102, 30)) != drawn[:30]
    assert len({case.case_id for case in drawn}) == COUNT


def test_a_type_less_leaves_the_others_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = len(slots(7, QUICK))
    before = {case.case_id for case in draw_cases(7, turns, QUICK)}
    models = list(drawn_models._models())
    without = [model for model in models if model.config["model_type"] != "opt"]
    drawn_models._known.cache_clear()
    monkeypatch.setattr(drawn_models, "_models", lambda: without)
    after = {case.case_id for case in draw_cases(7, turns - 1, QUICK)}
    drawn_models._known.cache_clear()
    assert len(before - after) == 1
    assert after < before


def test_an_axis_more_leaves_the_others_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(draw_cases(7, 40, QUICK))
    monkeypatch.setattr(case_generator, "_STACKS", ("transformers-4.48",))
    after = list(draw_cases(7, 40, QUICK))
    changed = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
    assert all(two.stack == "transformers-4.48" for _, two in changed)
    assert [one.batch_size for one in before] == [two.batch_size for two in after]


def test_quick_cases_are_shallow() -> None:
    for case in draw_cases(3, 60, QUICK):
        assert len(parse_spec(load_config(case.model)).layers) <= QUICK.layers


def test_bounds_are_kept() -> None:
    bounds = Bounds(batch_size=(3, 3), sequence_length=(256, 256), layers=4)
    for case in draw_cases(5, 30, bounds):
        assert case.batch_size == 3
        assert case.sequence_length == 256
