"""Models from free numbers, and the seed's presets."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.fields import DEFAULTS
from app.web.numbers import PRESETS, preset_numbers, read_numbers
from estimator.config_source import load_config
from estimator.errors import ModelError
from estimator.families import parse_spec


def numbers(**fields: Any) -> Any:
    return read_numbers({**DEFAULTS, **fields})


@pytest.mark.parametrize("billions", [0.5, 1.236, 8, 70.5])
def test_the_derived_llama_has_the_parameters_asked_for(billions: float) -> None:
    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4}
    found = numbers(parameters_billions=billions, vocab_size=32000, **sizes)
    spec = parse_spec(load_config(found.config()))
    a_column = 3 * 2048 * found.num_hidden_layers
    assert abs(spec.parameters - billions * 1e9) <= a_column


def test_a_large_vocabulary_ties_the_output_layer() -> None:
    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "num_key_value_heads": 8}
    assert numbers(parameters_billions=0.7, **sizes).config()["tie_word_embeddings"]
    assert not numbers(parameters_billions=8).config()["tie_word_embeddings"]


def test_too_few_parameters_are_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.1 billion parameters are too few"):
        numbers(parameters_billions=0.1).config()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_attention_heads": 30}, "impossible together"),
        ({"num_key_value_heads": 5}, "impossible together"),
    ],
)
def test_contradictions(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        numbers(**fields).config()


@pytest.mark.parametrize("value", [0, -1, None, True, "8", float("nan"), 1e99])
def test_parameters_are_a_number_in_a_range(value: Any) -> None:
    with pytest.raises(ModelError, match="parameters_billions is"):
        numbers(parameters_billions=value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_in_numbers_that_make_a_model(name: str) -> None:
    filled = preset_numbers(name)
    assert set(filled) < set(DEFAULTS)
    assert numbers(**filled).config()["hidden_size"] == filled["hidden_size"]
