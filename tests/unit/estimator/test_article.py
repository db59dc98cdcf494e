"""The article's formulas against the values that its calculator shows (docs/article.md)."""

from __future__ import annotations

import pytest

from estimator.article import (
    OPTIMIZER_RULES,
    ArticleCoefficients,
    ArticleShape,
    activation_bytes,
    estimate_article,
    inference_components,
    kv_cache_bytes,
    training_components,
    weight_bytes,
)
from estimator.case import OPTIMIZERS, Case
from estimator.catalogue import entries
from estimator.errors import CaseError, ModelError, UnsupportedError
from estimator.units import GIB

LLAMA_3_8B = ArticleShape(8_000_000_000, 4096, 32, 32)

# The calculator's presets: rounded parameters, and what it shows (GiB) for inference and
# training in half precision with AdamW, batch 1, 2048 tokens.
PRESETS = {
    "Llama-3-8B": (LLAMA_3_8B, 19.46, 108.87),
    "Mixtral-8x7B": (ArticleShape(47_000_000_000, 4096, 32, 32), 92.11, 617.37),
    "Qwen2-72B": (ArticleShape(72_000_000_000, 8192, 80, 64), 146.24, 950.90),
    "Llama-3-70B": (ArticleShape(70_000_000_000, 8192, 80, 64), 142.51, 924.82),
    "Phi-3-mini": (ArticleShape(3_800_000_000, 3072, 32, 32), 11.12, 53.59),
    "phi-2": (ArticleShape(2_700_000_000, 2560, 32, 32), 8.82, 38.99),
}


def case(**fields: object) -> Case:
    return Case.from_dict({"model": "meta-llama/Meta-Llama-3-8B", **fields})


@pytest.mark.parametrize("name", PRESETS)
def test_calculator_values(name: str) -> None:
    shape, inference, training = PRESETS[name]
    parts = inference_components(shape, 1, 2048, 16)
    assert round(parts.total_bytes / GIB, 2) == inference
    parts = training_components(shape, 1, 2048, 16, "adamw", shape.parameters)
    assert round(parts.total_bytes / GIB, 2) == training


def test_calculator_parts_of_llama_3_8b() -> None:
    parts = inference_components(LLAMA_3_8B, 1, 2048, 16)
    assert round(parts.weights_bytes / GIB, 2) == 14.90
    assert parts.kv_cache_bytes == GIB
    assert round(parts.activations_bytes / GIB, 2) == 3.56


@pytest.mark.parametrize(
    ("bits", "weights", "cache"),
    [
        (32, 32_000_000_000, 2 * GIB),
        (8, 8_000_000_000, GIB // 2),
        (4, 4_000_000_000, GIB // 4),
    ],
)
def test_precisions(bits: int, weights: int, cache: int) -> None:
    assert weight_bytes(LLAMA_3_8B, bits) == weights
    assert kv_cache_bytes(LLAMA_3_8B, 1, 2048, bits) == cache


def test_odd_number_of_half_bytes_rounds_up() -> None:
    assert weight_bytes(ArticleShape(3, 1, 1, 1), 4) == 2


@pytest.mark.parametrize(
    ("rule", "states"),
    [("adamw", 8_000_000), ("adamw_quantized", 2_000_000), ("sgd", 4_000_000)],
)
def test_optimizer_and_gradients_scale_with_the_trainable_share(rule: str, states: int) -> None:
    parts = training_components(LLAMA_3_8B, 1, 2048, 16, rule, 1_000_000)
    assert parts.optimizer_states_bytes == states
    assert parts.gradients_bytes == 4_000_000
    assert parts.kv_cache_bytes == GIB


def test_activations_stay_exact_ints_beyond_floats() -> None:
    shape = ArticleShape(1, 8192, 1, 64)
    batch, length = 2**31 - 1, 2**31 - 1
    assert activation_bytes(shape, batch, length) == 4 * batch * length * (
        34 * 8192 + 5 * length * 64
    )


def test_coefficients_can_be_replaced() -> None:
    coefficients = ArticleCoefficients(activation_linear=10, activation_scores=0.5)
    expected = 4 * 2048 * (10 * 4096 + 0.5 * 2048 * 32)
    assert activation_bytes(LLAMA_3_8B, 1, 2048, coefficients) == expected


def test_report_adds_up_and_names_its_faults() -> None:
    report = estimate_article(case(sequence_length=2048))
    assert report.source == "article"
    assert report.parameters.total == 8_030_261_248
    assert report.peak.phase == "decode"
    assert report.components.total_bytes == report.peak.allocated_bytes
    assert report.peak.requested_bytes is None
    assert report.peak.reserved_bytes is None
    assert report.components.weights_bytes == 2 * 8_030_261_248
    assert report.components.kv_cache_bytes == 2048 * 131_072 * 4  # 32 heads, not 8
    assert any("32 heads, not 8" in line for line in report.assumptions)


def test_training_report() -> None:
    report = estimate_article(
        case(task="training", gradient_checkpointing=True, sequence_length=2048)
    )
    assert report.peak.phase == "backward"
    assert report.components.optimizer_states_bytes == 8 * 8_030_261_248
    assert report.components.kv_cache_bytes > 0
    assert report.components.activations_bytes == 4 * 2048 * 2 * 4096
    assert "full recomputation: 2 B S h of one layer, times 4" in report.assumptions
    assert "a KV cache is counted in training too" in report.assumptions


def test_extras_take_the_formulas_of_the_articles_reference() -> None:
    """Korthikanti et al. 2022: no scores where attention is recomputed, all of it over N ranks."""
    fields = {"task": "training", "gradient_checkpointing": True, "sequence_length": 2048}
    selective = estimate_article(case(**fields, recompute_granularity="selective"))
    assert selective.components.activations_bytes == 4 * 2048 * 34 * 4096
    plain, shared = (
        estimate_article(case(task="training", sequence_length=2048, parallelism=spread))
        for spread in (None, {"sp_size": 8})
    )
    assert shared.components.activations_bytes * 8 == plain.components.activations_bytes
    assert shared.components.kv_cache_bytes * 8 == plain.components.kv_cache_bytes
    assert shared.components.optimizer_states_bytes == plain.components.optimizer_states_bytes
    assert any("no ZeRO" in line for line in shared.assumptions)


def test_quantized_inference_takes_half_a_byte() -> None:
    report = estimate_article(case(quantization="nf4"))
    assert report.components.weights_bytes == 8_030_261_248 // 2
    assert any(line.startswith("nf4: 0.5 bytes") for line in report.assumptions)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_a_rule_or_a_way_out(optimizer: str) -> None:
    run = case(task="training", optimizer=optimizer)
    if optimizer in OPTIMIZER_RULES:
        assert estimate_article(run).components.optimizer_states_bytes > 0
    else:
        with pytest.raises(UnsupportedError, match="--formulas architecture"):
            estimate_article(run)


@pytest.mark.parametrize(
    ("lora", "trainable"),
    [
        # 32 layers of q, k, v, o (4096 to 4096, 1024, 1024, 4096), gate, up, down (14336)
        ({}, 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
        ({"r": 8, "target_modules": ["q_proj", "v_proj"]}, 32 * 8 * (8192 + 5120)),
        ({"r": 1, "target_modules": ["q_proj"], "use_dora": True}, 32 * (8192 + 4096)),
    ],
)
def test_adapters_are_what_is_trained(lora: dict[str, object], trainable: int) -> None:
    report = estimate_article(case(task="training", method="lora", lora=lora))
    assert report.parameters.trainable == trainable
    assert report.components.gradients_bytes == 4 * trainable
    assert report.components.weights_bytes == 2 * 8_030_261_248
    assert "the adapters' own weights are not counted" in report.assumptions


def test_adapters_without_a_target_are_refused() -> None:
    lora = {"target_modules": ["nonesuch"]}
    with pytest.raises(CaseError, match=r"lora.target_modules .* no such linear modules"):
        estimate_article(case(task="training", method="lora", lora=lora))


def test_unknown_type_without_a_count_names_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"'new' *.*gpumem trace"):
        estimate_article(Case.from_dict({"model": {"model_type": "new", "hidden_size": 8}}))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("tiiuae/falcon-7b", "for 71 heads, not 1"),
        ("deepseek-ai/DeepSeek-V3", "latent attention ignored"),
    ],
)
def test_faults_by_attention(model: str, line: str) -> None:
    report = estimate_article(Case.from_dict({"model": model}))
    assert any(line in assumption for assumption in report.assumptions)


def test_answers_the_whole_catalogue_or_says_what_it_lacks() -> None:
    lacking = {}
    for entry in entries():
        try:
            report = estimate_article(Case.from_dict({"model": entry.name}))
        except ModelError as error:
            lacking[entry.model_type] = str(error)
        else:
            assert report.parameters.total == entry.parameters
    assert set(lacking) == {"jetmoe", "rwkv", "mamba", "falcon_mamba"}
    assert all("num_attention_heads" in message for message in lacking.values())
