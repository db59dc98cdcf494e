"""Parsers of the dense families: parameter counts, and configurations that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import ModelError, UnsupportedError
from estimator.families import parse_spec
from estimator.spec import ModelSpec

TYPES = [
    "gemma2",
    "gemma3_text",
    "vaultgemma",
    "arcee",
    "smollm3",
    "seed_oss",
    "ministral3",
    "mistral",
    "apertus",
    "olmo",
    "olmo2",
    "olmo3",
    "stablelm",
    "starcoder2",
    "phi",
    "phi3",
    "granite",
    "glm",
    "glm4",
    "cohere",
    "cohere2",
    "nemotron",
    "exaone4",
    "ernie4_5",
    "hunyuan_v1_dense",
    "helium",
    "cwm",
    "persimmon",
]
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
}
MODELS = [entry for entry in entries() if entry.model_type in TYPES]


def spec_of(model_type: str, **fields: Any) -> ModelSpec:
    config = {key: value for key, value in {**SIZES, **fields}.items() if value is not ...}
    return parse_spec(load_config({"model_type": model_type, **config}))


def windows_of(spec: ModelSpec) -> list[int | None]:
    return [layer.attention.window for layer in spec.layers]


def test_every_type_has_a_model_in_the_catalogue() -> None:
    assert {entry.model_type for entry in MODELS} == set(TYPES)


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_parameters_are_those_that_transformers_builds(entry: Any) -> None:
    assert parse_spec(load_config(entry.name)).parameters == entry.parameters


@pytest.mark.parametrize("model_type", [*TYPES, "ministral"])
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_lacks_is_named(model_type: str, field: str) -> None:
    with pytest.raises(ModelError, match=f"lacks {field}"):
        spec_of(model_type, **{field: ...})


@pytest.mark.parametrize("model_type", [*TYPES, "ministral"])
@pytest.mark.parametrize("value", [0, -512, 2.5, "512", True, 2**40])
def test_an_impossible_width_is_named(model_type: str, value: object) -> None:
    with pytest.raises(ModelError, match="intermediate_size"):
        spec_of(model_type, intermediate_size=value)


@pytest.mark.parametrize("model_type", ["nemotron", "ministral", "hunyuan_v1_dense"])
def test_what_transformers_has_no_default_for_is_required(model_type: str) -> None:
    field = "num_key_value_heads" if model_type == "nemotron" else "head_dim"
    with pytest.raises(ModelError, match=f"lacks {field}"):
        spec_of(model_type, **{field: None})


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ModelError, match="num_key_value_heads 3 does not divide"):
        spec_of("granite", num_key_value_heads=3)
    with pytest.raises(ModelError, match="does not divide"):
        spec_of("cohere2", num_attention_heads=7, num_key_value_heads=7)


def test_helium_wants_a_square_output() -> None:
    with pytest.raises(ModelError, match="has to be hidden_size 512"):
        spec_of("helium", num_key_value_heads=8, head_dim=32)


def test_what_has_no_formula_names_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"clip_qkv.*gpumem trace"):
        spec_of("olmo", clip_qkv=8.0)
    with pytest.raises(UnsupportedError, match=r"bidirectional.*gpumem trace"):
        spec_of("gemma3_text", use_bidirectional_attention=True)


def test_windows_by_pattern_and_by_layer_types() -> None:
    assert windows_of(spec_of("gemma2", sliding_window=256)) == [256, None] * 4
    assert windows_of(spec_of("cohere2", sliding_window=256)) == [256, 256, 256, None] * 2
    assert windows_of(spec_of("cwm", sliding_window=256)) == [None, 256, 256, 256] * 2
    gemma3 = spec_of("gemma3_text", sliding_window=256, sliding_window_pattern=3)
    assert windows_of(gemma3) == [256, 256, None, 256, 256, None, 256, 256]
    kinds = ["full_attention"] * 7 + ["sliding_attention"]
    assert windows_of(spec_of("olmo3", layer_types=kinds)) == [None] * 7 + [4096]


def test_layer_types_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match=r"layer_types.*a list of 8 names"):
        spec_of("olmo3", layer_types=["full_attention"])
    with pytest.raises(ModelError, match="layer_types"):
        spec_of("gemma2", layer_types=["linear_attention"] * 8)


def test_exaone4_without_a_window_wants_layer_types() -> None:
    with pytest.raises(ModelError, match="lacks layer_types"):
        spec_of("exaone4", sliding_window=None)
    kinds = ["sliding_attention"] * 8
    with pytest.raises(ModelError, match="lacks sliding_window"):
        spec_of("exaone4", sliding_window=None, layer_types=kinds)


def test_layers_without_rotary_positions() -> None:
    rotates = [layer.attention.rotary for layer in spec_of("smollm3").layers]
    assert rotates == [True, True, True, False] * 2
    hybrid = spec_of("exaone4", sliding_window=256)
    assert [layer.attention.rotary for layer in hybrid.layers] == [True, True, True, False] * 2
    with pytest.raises(ModelError, match=r"no_rope_layers.*zeros and ones"):
        spec_of("smollm3", no_rope_layers=[2] * 8)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, "half", True])
def test_a_share_of_a_head_is_between_0_and_1(share: object) -> None:
    with pytest.raises(ModelError, match="partial_rotary_factor"):
        spec_of("stablelm", partial_rotary_factor=share)


@pytest.mark.parametrize("cap", [0, "30", True])
def test_a_cap_is_a_number(cap: object) -> None:
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        spec_of("gemma2", final_logit_softcapping=cap)
    assert not spec_of("gemma2", final_logit_softcapping=None).logits_softcap
    assert spec_of("gemma2").logits_softcap
