"""Parameter counts of every known type's default configuration, as transformers builds it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.causal_types import causal_types, default_configuration
from estimator.case import Case
from estimator.config_source import load_config
from estimator.families import PARSERS, parse_spec
from profiler.build import build_model
from profiler.tensors import count_parameters

KNOWN = sorted(set(PARSERS) & set(causal_types()))
LEFT_OUT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""Sizes without which a default configuration neither runs nor (most of them) builds."""


def test_the_known_types_are_transformers_own() -> None:
    assert set(KNOWN) == set(PARSERS)


@pytest.mark.parametrize("model_type", KNOWN)
def test_parameters_are_those_of_the_default_model(model_type: str) -> None:
    config = {**default_configuration(model_type), **LEFT_OUT.get(model_type, {})}
    built = build_model(Case.from_dict({"model": config}), "meta")
    assert parse_spec(load_config(config)).parameters == count_parameters(built).total
