"""Parsers of the first open decoders and of Llama's rarer variants: counts, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.case import Lora
from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import ModelError, UnsupportedError
from estimator.families import PARSERS, parse_spec
from estimator.spec import ModelSpec

TYPES = (
    "gptj",
    "codegen",
    "gpt_neo",
    "bitnet",
    "hyperclovax",
    "bloom",
    "mpt",
    "falcon",
    "xglm",
    "ctrl",
    "modernbert-decoder",
)
MODELS = [entry for entry in entries() if entry.model_type in TYPES]
GPT: dict[str, Any] = {"n_embd": 256, "n_head": 8, "n_layer": 2, "vocab_size": 500}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return parse_spec(load_config(config))


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_parameters_are_the_catalogues(entry: Any) -> None:
    assert parse_spec(load_config(entry.name)).parameters == entry.parameters


def test_every_family_is_in_the_catalogue() -> None:
    assert {entry.model_type for entry in MODELS} == set(TYPES)
    assert set(TYPES) <= set(PARSERS)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "gptj", "n_embd": 100, "n_head": 7}, "n_head 7 does not divide"),
        ({"model_type": "gptj", **GPT, "rotary_dim": 64}, "rotary_dim is 64"),
        ({"model_type": "codegen", **GPT, "n_head": 2}, "n_head is 2"),
        ({"model_type": "gpt_neo", "num_heads": 0}, "num_heads is 0"),
        ({"model_type": "nanochat"}, "lacks hidden_size"),
        ({"model_type": "bloom", "hidden_size": 100, "n_head": 8}, "n_head 8 does not divide"),
        ({"model_type": "mpt", "attn_config": []}, r"attn_config is \[\], but must be an object"),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 9}, "divide"),
        ({"model_type": "xglm", "d_model": 100, "attention_heads": 8}, "does not divide"),
        ({"model_type": "ctrl", "dff": 0}, "dff is 0"),
        ({"model_type": "falcon", "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3"),
    ],
)
def test_impossible_configurations_are_named(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        spec_of(config)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "gptj", **GPT, "rotary_dim": None}, "rotary_dim null"),
        ({"model_type": "xglm", "layerdrop": 0.1}, "layerdrop"),
        ({"model_type": "bert", "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "ernie", "use_task_id": True}, "use_task_id"),
        ({"model_type": "modernbert-decoder", "mlp_dropout": 0.1}, "mlp_dropout"),
        ({"model_type": "xglm", "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "bloom", "slow_but_exact": True}, "slow_but_exact"),
        ({"model_type": "mpt", "attn_config": {"clip_qkv": 8}}, "clip_qkv"),
        (
            {"model_type": "falcon", "new_decoder_architecture": True, "parallel_attn": False},
            "new_decoder_architecture without parallel_attn",
        ),
    ],
)
def test_what_has_no_formula_is_said_with_a_way_out(config: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{what}.*gpumem trace"):
        spec_of(config)


@pytest.mark.parametrize("model_type", ["gptj", "codegen"])
def test_a_class_without_sdpa_is_answered_for_eager_and_says_so(model_type: str) -> None:
    config = {"model_type": model_type, **GPT, "rotary_dim": 32}
    asked, eager = (
        estimate(Case(model=config, sequence_length=256, attention=name))
        for name in ("sdpa", "eager")
    )
    assert asked.peak == eager.peak
    assert f"{model_type} supports no sdpa: its attention is eager" in " ".join(asked.assumptions)
    assert asked.case["attention"] == "sdpa"
    with pytest.raises(UnsupportedError, match=r"'flash_attention_2' of .*: use attention eager"):
        estimate(Case(model=config, attention="flash_attention_2"))


def test_scores_are_in_fp32_and_quadratic() -> None:
    config = {"model_type": "gptj", **GPT, "rotary_dim": 32}
    peaks = [
        estimate(Case(model=config, sequence_length=length, max_new_tokens=1)).peak.requested_bytes
        for length in (512, 1024)
    ]
    assert peaks[0] is not None
    assert peaks[1] is not None
    # Two score matrices of 8 heads are alive at once, and the layer before left one in bfloat16.
    assert peaks[1] - peaks[0] > 8 * (1024**2 - 512**2) * (4 + 4 + 2)


def test_one_key_value_head_of_falcon_takes_the_math_path() -> None:
    """Falcon does not tell sdpa that heads are grouped: S**2 scores in fp32, a head."""
    config = {
        "model_type": "falcon",
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_hidden_layers": 1,
        "vocab_size": 64,
    }
    single, grouped = (
        estimate(Case(model={**config, **extra}, sequence_length=2048, max_new_tokens=1))
        for extra in ({}, {"new_decoder_architecture": True, "num_kv_heads": 1})
    )
    scores = 8 * 2048**2 * 4
    assert single.peak.requested_bytes is not None
    assert grouped.peak.requested_bytes is not None
    assert single.peak.requested_bytes > 2 * scores
    assert grouped.peak.requested_bytes < scores


def test_falcons_linears_are_not_quantized() -> None:
    """transformers replaces `nn.Linear` itself only, not classes made of it."""
    config = {"model_type": "falcon", "hidden_size": 512, "num_attention_heads": 8}
    config |= {"num_hidden_layers": 2, "vocab_size": 64}
    plain, quantized = (
        estimate(Case(model=config, sequence_length=8, quantization=kind)) for kind in (None, "nf4")
    )
    assert quantized.components.weights_bytes == plain.components.weights_bytes
    assert "none of falcon's linears" in " ".join(quantized.assumptions)


def test_a_class_without_checkpointing_is_refused() -> None:
    case = Case(model={"model_type": "ctrl"}, task="training", gradient_checkpointing=True)
    with pytest.raises(UnsupportedError, match=r"ctrl .* supports no gradient checkpointing"):
        estimate(case)


def test_ctrls_table_of_positions_is_loaded_in_fp32() -> None:
    config = {"model_type": "ctrl", **GPT, "dff": 512, "n_positions": 4096}
    short, long = (
        estimate(Case(model={**config, "n_positions": n}, sequence_length=8)).phases
        for n in (4096, 8192)
    )
    grown = long[0].end_allocated_bytes - short[0].end_allocated_bytes
    assert grown == 4096 * 256 * 4
    assert long[1].end_allocated_bytes - short[1].end_allocated_bytes == 4096 * 256 * 2


def test_what_stands_before_the_head_is_adapted_and_counted() -> None:
    """ModernBERT transforms the last hidden states: a linear outside of all layers."""
    config = {
        "model_type": "modernbert-decoder",
        "hidden_size": 256,
        "intermediate_size": 400,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    case = Case(model=config, task="training", method="lora", lora=Lora(target_modules=("dense",)))
    assert estimate(case).parameters.trainable == 16 * 2 * 256
    windows = [
        layer.attention.window for layer in spec_of({**config, "num_hidden_layers": 4}).layers
    ]
    assert windows == [None, 64, 64, None]


@pytest.mark.parametrize(
    ("model_type", "cache"),
    [("bloom", "static"), ("mpt", "static"), ("xglm", "quantized"), ("gptj", "paged")],
)
def test_a_cache_that_a_class_does_not_run_with_is_refused(model_type: str, cache: Any) -> None:
    case = Case(model={"model_type": model_type}, sequence_length=64, cache=cache)
    with pytest.raises(
        UnsupportedError, match=f"cache '{cache}' of {model_type}: use cache dynamic"
    ):
        estimate(case)


BART = {"model_type": "bart", "d_model": 256, "decoder_layers": 2, "decoder_attention_heads": 8}
BART |= {"decoder_ffn_dim": 512, "vocab_size": 500}


def test_an_idle_attention_is_loaded_but_gets_no_gradient_and_no_states() -> None:
    """BART's decoder keeps its attention to an encoder, which no causal run calls."""
    spec = spec_of(BART)
    idle = sum(spec.idle_counts())
    assert idle == 2 * (4 * (256 * 256 + 256) + 2 * 256)
    report = estimate(Case(model=BART, task="training", optimizer="adamw_torch_fused"))
    assert report.parameters.trainable == report.parameters.total == spec.parameters
    states = report.components.optimizer_states_bytes
    assert states is not None
    # Each of the tensors is rounded up by less than 512 B, and has a step of its own.
    assert 0 <= states - 2 * 2 * (spec.parameters - idle) < 80 * 3 * 512


def test_adapters_on_idle_linears_have_no_states() -> None:
    fields = {"model": BART, "task": "training", "method": "lora"}
    every, fewer = (
        estimate(Case.from_dict({**fields, "lora": {"target_modules": names}}))
        for names in (["q_proj"], ["fc1"])
    )
    # One of the two q_proj of a layer runs.
    assert every.parameters.trainable == 2 * 2 * 16 * 2 * 256
    states = every.components.optimizer_states_bytes
    assert states is not None
    assert states < 8 * every.parameters.trainable
    assert fewer.components.optimizer_states_bytes is not None


def test_dropped_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="decoder_layerdrop"):
        spec_of({**BART, "decoder_layerdrop": 0.1})
