"""Parsers and formulas of models with recurrences and convolutions: what they refuse, and say."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import CaseError, ModelError, UnsupportedError
from estimator.families import parse_spec

TYPES = (
    *("lfm2", "lfm2_moe", "mamba", "mamba2", "falcon_mamba"),
    *("bamba", "granitemoehybrid", "jamba", "nemotron_h"),
)
MODELS = [entry for entry in entries() if entry.model_type in TYPES]
MAMBA: dict[str, Any] = {"model_type": "mamba", "hidden_size": 128, "num_hidden_layers": 2}


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_parameters_are_the_catalogues(entry: Any) -> None:
    assert parse_spec(load_config(entry.name)).parameters == entry.parameters


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "lfm2_moe"}, "lacks layer_types"),
        ({"model_type": "lfm2", "layer_types": ["conv"]}, "names the kinds of 1 layers"),
        ({"model_type": "mamba2", "num_heads": 7}, "num_heads 7 does not divide"),
        ({"model_type": "mamba", "state_size": 0}, "state_size is 0"),
    ],
)
def test_impossible_configurations_are_named(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        parse_spec(load_config(config))


def test_what_has_no_formula_is_said_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"use_mambapy.*gpumem trace"):
        parse_spec(load_config({**MAMBA, "use_mambapy": True}))
    with pytest.raises(UnsupportedError, match=r"quantization 'nf4' of mamba.*gpumem trace"):
        estimate(Case(model=MAMBA, sequence_length=32, quantization="nf4"))


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba"])
def test_adapters_that_peft_refuses_are_refused(model_type: str) -> None:
    case = Case.from_dict(
        {"model": {"model_type": model_type}, "task": "training", "method": "lora"}
    )
    with pytest.raises(CaseError, match=r"put an adapter on out_proj of .* in_proj"):
        estimate(case)


def test_states_do_not_grow_with_the_sequence_and_the_kernels_are_named() -> None:
    short, long = (
        estimate(Case(model=MAMBA, sequence_length=32, max_new_tokens=n)) for n in (2, 4000)
    )
    assert short.components.kv_cache_bytes is not None
    assert (
        short.phases[-1].end_allocated_bytes >= long.phases[-1].end_allocated_bytes - 2 * 8 * 4100
    )
    assert any("without mamba-ssm's kernels" in line for line in short.assumptions)


def test_a_scan_of_many_tokens_costs_no_more_operations_than_one_of_few() -> None:
    """Tokens between the first and the last are played as one."""
    few, many = (
        estimate(Case(model=MAMBA, task="training", sequence_length=n)).peak.requested_bytes
        for n in (1024, 2048)
    )
    assert few is not None
    assert many is not None
    # Each token keeps a state in fp32 and one in bfloat16, and its share of what is [B, I, Q, N].
    assert many - few > 1024 * 256 * 16 * (4 + 2 + 3 * 4)
