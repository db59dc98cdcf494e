"""Types whose parameters are counted though their memory has no formulas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.article import read_shape
from estimator.catalogue import CatalogueEntry, entries
from estimator.config_source import load_config
from estimator.errors import ModelError, UnsupportedError
from estimator.families import count_parameters, parse_spec
from estimator.families.parameters_only import COUNTERS


@pytest.mark.parametrize(
    "entry", [entry for entry in entries() if entry.model_type in COUNTERS], ids=lambda e: e.name
)
def test_parameters_of_the_catalogue_are_exact(entry: CatalogueEntry) -> None:
    assert count_parameters(load_config(entry.name)) == entry.parameters


def test_the_sentence_names_the_type_its_parameters_and_the_ways_out() -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse_spec(load_config("RWKV/rwkv-4-169m-pile"))
    assert str(caught.value) == (
        "the architecture formulas count the parameters of RWKV/rwkv-4-169m-pile, "
        "169 342 464 (0.32 GiB in bfloat16), but do not know the memory of its model type "
        "'rwkv': use gpumem trace, which runs transformers' own code, or --formulas article"
    )


def test_types_with_formulas_are_counted_alike() -> None:
    config = load_config("meta-llama/Llama-3.2-1B")
    assert count_parameters(config) == parse_spec(config).parameters == 1_235_814_400


def test_an_unknown_type_has_no_count() -> None:
    assert count_parameters(load_config({"model_type": "no-such-type"})) is None


def test_the_article_takes_the_counts() -> None:
    config = {**load_config("ai21labs/Jamba-v0.1").config}
    assert read_shape(load_config(config)).parameters == 51_570_323_328


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "lfm2_moe"}, "the configuration of lfm2_moe lacks layer_types"),
        (
            {"model_type": "mamba2", "num_heads": 7},
            "mamba2 is impossible: expand times hidden_size is 8192, which num_heads 7",
        ),
        (
            {"model_type": "granitemoehybrid", "layer_types": ["mamba"], "num_hidden_layers": 2},
            "names the kinds of 1 layers, but num_hidden_layers is 2",
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "MX"},
            r"hybrid_override_pattern is .MX., but must be letters out of M, E, \* and -",
        ),
        (
            {"model_type": "zamba2", "layers_block_type": ["mamba", "conv1d"]},
            "layers_block_type is 'conv1d', but must be a list of linear_attention, hybrid",
        ),
        ({"model_type": "xlstm", "qk_dim_factor": -1}, "qk_dim_factor is -1"),
        ({"model_type": "marian", "decoder_vocab_size": 5}, "decoder_vocab_size other than"),
    ],
)
def test_impossible_configurations(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ModelError, UnsupportedError), match=sentence):
        count_parameters(load_config(config))


FIELDS = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "head_dim", "layer_types", "layers_block_type", "expand", "mamba_expand"),
    *("attn_layer_period", "attn_layer_offset", "block_types", "qk_dim_factor", "d_model"),
    *("block_ffn_dim_multiplier", "hybrid_override_pattern", "lru_width", "time_step_rank"),
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("ME*-x", max_size=5),
    st.lists(st.sampled_from(["mamba", "attention", "hybrid", "conv", "moe", 3]), max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(
    model_type=st.sampled_from(sorted(COUNTERS)),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
)
def test_any_configuration_is_counted_or_refused_in_one_sentence(
    model_type: str, changes: dict[str, Any]
) -> None:
    sentence = "counted"
    try:
        count = count_parameters(load_config({**changes, "model_type": model_type}))
    except (ModelError, UnsupportedError) as error:
        sentence = str(error)
    else:
        assert count is not None
        assert count > 0
    assert sentence
    assert "\n" not in sentence
