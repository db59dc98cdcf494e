"""Parsers of older dense families and of mixtures of experts: counts, bad configurations."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.architecture.inventory import adapter_tensors
from estimator.case import Lora
from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import ModelError, UnsupportedError
from estimator.families import PARSERS, parse_spec
from estimator.spec import ModelSpec, Moe

TYPES = (
    "gpt_neox",
    "opt",
    "biogpt",
    "gpt_bigcode",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "glm4_moe",
)
MODELS = [entry for entry in entries() if entry.model_type in TYPES]
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 500,
}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return parse_spec(load_config(config))


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_parameters_are_the_catalogues(entry: Any) -> None:
    assert parse_spec(load_config(entry.name)).parameters == entry.parameters


@pytest.mark.parametrize(
    ("model_type", "parameters"),
    [
        ("opt", 125_239_296),
        ("biogpt", 346_763_264),
        ("gpt_bigcode", 111_446_784),
        ("mixtral", 46_702_792_704),
        ("qwen2_moe", 14_315_784_192),
        ("qwen3_moe", 15_350_731_776),
        ("olmoe", 13_361_612_800),
        ("granitemoe", 37_039_116_288),
        ("glm4_moe", 103_481_200_640),
    ],
)
def test_defaults_are_transformers_own(model_type: str, parameters: int) -> None:
    """The counts are those of transformers' default configurations, built on meta."""
    assert spec_of({"model_type": model_type}).parameters == parameters


def test_every_family_is_in_the_catalogue() -> None:
    assert {entry.model_type for entry in MODELS} == set(TYPES)
    assert set(TYPES) <= set(PARSERS)


def test_neox_rotates_a_quarter_of_each_head() -> None:
    spec = parse_spec(load_config("EleutherAI/pythia-1b"))
    assert (spec.head_dim, spec.rotary_dim) == (256, 64)


def test_rotary_share_is_read_from_rope_parameters() -> None:
    config = {**load_config("EleutherAI/pythia-1b").config, "rotary_pct": 0.25}
    config["rope_parameters"] = {"rope_theta": 10000, "partial_rotary_factor": 0.5}
    assert spec_of(config).rotary_dim == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": 0}, "num_local_experts is 0"),
        ({"num_experts_per_tok": -1}, "num_experts_per_tok is -1"),
        ({"intermediate_size": 1.5}, "intermediate_size is 1.5"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776"),
    ],
)
def test_bad_sizes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec_of({**MIXTRAL, **fields})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_neox"},
        {**load_config("EleutherAI/pythia-70m").config, "num_attention_heads": 7},
        {**load_config("EleutherAI/pythia-70m").config, "rotary_pct": 1.5},
        {"model_type": "gpt_bigcode", "n_embd": 100, "n_head": 12},
        {"model_type": "opt", "dropout": 1.0},
        {"model_type": "qwen3_moe", "mlp_only_layers": "all"},
        {"model_type": "glm4_moe", "n_group": 3},
        {"model_type": "glm4_moe", "first_k_dense_replace": -1},
    ],
)
def test_impossible_configurations_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        spec_of(config)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "opt", "layerdrop": 0.1},
        {"model_type": "biogpt", "activation_dropout": 0.1},
        {**MIXTRAL, "output_router_logits": True},
        {**MIXTRAL, "router_jitter_noise": 0.1},
        {"model_type": "olmoe", "clip_qkv": 8.0},
    ],
)
def test_what_has_no_formula_is_said_with_a_way_out(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="gpumem trace"):
        spec_of(config)


def test_all_experts_are_resident_not_the_active_ones() -> None:
    mixture = spec_of(MIXTRAL).layers[0].mlp
    assert isinstance(mixture, Moe)
    assert mixture.parameters_apart == (4 * 256, 4 * 2 * 512 * 256, 4 * 512 * 256)
    assert mixture.linears == ()


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("all-linear", ("router", "gate_up", "down")),
        (("q_proj", "v_proj"), ()),
        (("q_proj", "w2"), ("down",)),
        (("w1", "w3"), ("gate_up",)),
    ],
)
def test_adapters_on_stacked_experts(targets: Any, adapted: tuple[str, ...]) -> None:
    """peft adapts all experts of a layer at once; gates and ups with twice the rank."""
    layer = spec_of(MIXTRAL).layers[0]
    assert isinstance(layer.mlp, Moe)
    assert layer.mlp.adapted(targets) == adapted
    expected = {
        "router": [8 * 256, 4 * 8],
        "gate_up": [2 * 8 * 4 * 256, 2 * 8 * 4 * 2 * 512],
        "down": [8 * 4 * 256, 8 * 4 * 512],
    }
    tensors = list(adapter_tensors(layer, Lora(r=8, target_modules=targets)))
    on_experts = [count for name in adapted for count in expected[name]]
    assert tensors[: len(on_experts)] == on_experts
    assert len(tensors) - len(on_experts) == 2 * sum(
        targets == "all-linear" or linear.name in targets for linear in layer.linears
    )


def test_linears_whose_names_peft_takes_for_experts_carry_no_adapters() -> None:
    spec = spec_of({"model_type": "glm4_moe", "num_hidden_layers": 2})
    names = {linear.name for layer in spec.layers for linear in layer.linears if linear.adaptable}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_decoding_copies_the_chosen_experts_weights() -> None:
    """generate switches to batched products: a copy of the weights of each token's experts."""
    config = {**MIXTRAL, "num_hidden_layers": 1, "vocab_size": 64}
    few, many = (
        estimate(Case(model={**config, "num_experts_per_tok": k}, sequence_length=1))
        for k in (1, 2)
    )
    copied = 3 * 512 * 256 * 2
    grown = many.peak.requested_bytes - few.peak.requested_bytes
    assert (few.peak.phase, many.peak.phase) == ("decode", "decode")
    assert copied <= grown < 1.05 * copied
