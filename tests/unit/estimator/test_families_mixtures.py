"""Parsers of newer mixtures of experts and of latent attention: counts, caches, bad fields."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.architecture.inventory import inventory, weights
from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import CaseError, ModelError, UnsupportedError
from estimator.families import parse_spec
from estimator.spec import ModelSpec, Moe

TYPES = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "hunyuan_v1_moe",
    "llama4_text",
    "mimo_v2_flash",
    "minicpm3",
    "minimax_m2",
    "phimoe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "youtu",
)
MODELS = [entry for entry in entries() if entry.model_type in TYPES]
LATENT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
    "vocab_size": 500,
}


def spec_of(config: dict[str, Any], **fields: Any) -> ModelSpec:
    return parse_spec(load_config({**config, **fields}))


def test_every_type_is_in_the_catalogue() -> None:
    assert {entry.model_type for entry in MODELS} == set(TYPES)


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_parameters_are_the_catalogues(entry: Any) -> None:
    assert parse_spec(load_config(entry.name)).parameters == entry.parameters


@pytest.mark.parametrize(
    ("model_type", "parameters"),
    [
        ("axk1", 518_983_052_288),
        ("deepseek_v3", 671_026_404_352),
        ("ernie4_5_moe", 21_825_437_888),
        ("exaone_moe", 28_550_639_616),
        ("flex_olmo", 33_270_665_216),
        ("glm4_moe_lite", 29_943_390_976),
        ("gpt_oss", 116_829_156_672),
        ("granitemoeshared", 37_039_116_288),
        ("llama4_text", 107_769_861_120),
        ("minicpm3", 4_073_875_968),
        ("minimax_m2", 228_689_748_992),
        ("phimoe", 41_872_793_600),
        ("qwen3_5_moe_text", 34_660_610_688),
        ("qwen3_5_text", 8_953_803_264),
        ("qwen3_next", 79_674_391_296),
        ("solar_open", 102_651_793_408),
        ("youtu", 1_961_560_064),
    ],
)
def test_defaults_are_transformers_own(model_type: str, parameters: int) -> None:
    """The counts are those of transformers' default configurations, built on meta."""
    assert spec_of({"model_type": model_type}).parameters == parameters


def test_latents_are_what_is_cached() -> None:
    """576 elements a token and layer in bf16: 70 272 B a token for DeepSeek-V3's 61 layers."""
    spec = parse_spec(load_config("deepseek-ai/DeepSeek-V3"))
    a_token = sum(sum(layer.attention.cached_features) for layer in spec.layers)
    assert 2 * a_token == 70_272


def test_the_cache_of_latents_is_in_the_report() -> None:
    case = Case.from_dict({"model": LATENT, "batch_size": 2, "sequence_length": 512})
    cached = 2 * (512 + 127) * (64 + 16) * 2 * 3
    report = estimate(case)
    assert report.phases[-1].name == "decode"
    held = report.phases[-1].end_allocated_bytes - report.phases[0].end_allocated_bytes
    assert cached < held < 1.1 * cached + 2 * 8_519_680


def test_first_layers_are_dense() -> None:
    layers = spec_of(LATENT).layers
    assert [isinstance(layer.mlp, Moe) for layer in layers] == [False, True, True]


def test_queries_may_not_be_compressed() -> None:
    names = {linear.name for linear in spec_of(LATENT, q_lora_rank=None).layers[0].linears}
    assert "q_proj" in names
    assert "q_a_proj" not in names


def test_values_may_be_narrower_than_keys() -> None:
    attention = spec_of(LATENT).layers[0].attention
    assert (attention.head_dim, attention.value_size) == (48, 24)
    assert attention.output.inputs == 4 * 24


def test_layers_by_their_kind_of_mlp() -> None:
    config = {**LATENT, "model_type": "glm4_moe_lite"}
    spec = spec_of(config, mlp_layer_types=["sparse", "dense", "sparse"])
    assert [isinstance(layer.mlp, Moe) for layer in spec.layers] == [True, False, True]
    with pytest.raises(ModelError, match="mlp_layer_types"):
        spec_of(config, mlp_layer_types=["sparse"])


def test_late_layers_slide() -> None:
    config = {**LATENT, "model_type": "dots1", "n_shared_experts": 1}
    spec = spec_of(config, sliding_window=128, max_window_layers=2)
    assert [layer.attention.window for layer in spec.layers] == [None, None, 128]


def test_full_layers_do_not_rotate_beside_sliding_ones() -> None:
    config = {**LATENT, "model_type": "exaone_moe", "num_hidden_layers": 4, "num_experts": 8}
    spec = spec_of(config, sliding_window=128)
    assert [layer.attention.rotary for layer in spec.layers] == [True, True, True, False]


def test_a_shared_expert_needs_a_size() -> None:
    config = {"model_type": "granitemoeshared", "num_hidden_layers": 1}
    without, with_one = (
        spec_of(config, shared_intermediate_size=size).layers[0].mlp for size in (0, 512)
    )
    assert without.linears == ()
    assert [linear.name for linear in with_one.linears] == ["input_linear", "output_linear"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 3}, "n_group 3 does not divide"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0"),
        ({"qk_rope_head_dim": "64"}, "qk_rope_head_dim"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "topk_method"),
        ({"model_type": "deepseek_v2", "num_experts_per_tok": None}, "lacks num_experts_per_tok"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec_of(LATENT, **fields)


def test_dropout_on_stacked_experts_is_refused() -> None:
    fields = {"model": LATENT, "task": "training", "method": "lora"}
    targets = ["q_b_proj", "o_proj"]
    beside = {"lora_dropout": 0.1, "target_modules": targets}
    assert estimate(Case.from_dict({**fields, "lora": beside})).peak.requested_bytes
    with pytest.raises(CaseError, match=r"lora_dropout is 0\.1.*stacked experts"):
        estimate(Case.from_dict({**fields, "lora": {"lora_dropout": 0.1}}))


def test_adapters_on_routers_of_their_own_kind_are_refused() -> None:
    config = {**LATENT, "model_type": "llama4_text", "num_local_experts": 4}
    fields = {"model": config, "task": "training", "method": "lora"}
    with pytest.raises(CaseError, match="router"):
        estimate(Case.from_dict(fields))
    beside = {"target_modules": ["q_proj"]}
    assert estimate(Case.from_dict({**fields, "lora": beside})).parameters.trainable


def test_gpt_oss_is_eager_and_says_so() -> None:
    config = {**LATENT, "model_type": "gpt_oss", "num_local_experts": 4}
    report = estimate(Case.from_dict({"model": config}))
    assert any("eager" in line for line in report.assumptions)
    with pytest.raises(UnsupportedError, match="flash_attention_2"):
        estimate(Case.from_dict({"model": config, "attention": "flash_attention_2"}))


def test_sinks_and_biases_are_parameters() -> None:
    spec = spec_of({**LATENT, "model_type": "gpt_oss", "num_local_experts": 4})
    layer = spec.layers[0]
    assert layer.attention.parameters_apart == (4,)
    assert layer.mlp.parameters_apart[3:] == (4, 4 * 2 * 512, 4 * 256)


def test_what_corrects_scores_is_a_parameter_that_never_trains() -> None:
    config = {**LATENT, "model_type": "ernie4_5_moe", "moe_num_experts": 8}
    report = estimate(Case.from_dict({"model": config, "task": "training"}))
    assert report.parameters.total - report.parameters.trainable == 2 * 8


def test_a_router_in_fp32_takes_twice_the_bytes() -> None:
    config = {**LATENT, "model_type": "ernie4_5_moe", "moe_num_experts": 8}
    case = Case.from_dict({"model": config, "sequence_length": 1, "max_new_tokens": 1})
    spec = parse_spec(load_config(config))
    items = inventory(spec, None)
    beside = 2 * 2 * (8 * 256) + 2 * 4 * 8
    buffers = sum(items.buffers_bytes)
    assert weights(case, items).requested_bytes == 2 * sum(items.base) + beside + buffers


def test_mixtures_by_start_end_and_interval() -> None:
    config = {**LATENT, "model_type": "ernie4_5_moe", "num_hidden_layers": 6}
    spec = spec_of(config, moe_layer_start_index=2, moe_layer_end_index=4)
    mixed = [isinstance(layer.mlp, Moe) for layer in spec.layers]
    assert mixed == [False, False, True, True, True, False]


def test_chunked_layers_rotate_and_others_scale_their_queries() -> None:
    config = {**LATENT, "model_type": "llama4_text", "num_hidden_layers": 4}
    attentions = [layer.attention for layer in spec_of(config).layers]
    assert [attention.window for attention in attentions] == [8192] * 3 + [None]
    assert [attention.rotary for attention in attentions] == [True] * 3 + [False]
    assert [attention.query_scaled for attention in attentions] == [False] * 3 + [True]
    with pytest.raises(ModelError, match="layer_types"):
        spec_of(config, layer_types=["sliding_attention"] * 4)


def test_each_fourth_layer_attends_to_all_tokens() -> None:
    layers = spec_of({"model_type": "qwen3_next", "num_hidden_layers": 8}).layers
    assert [layer.attention.mixer is None for layer in layers] == ([False] * 3 + [True]) * 2
    kinds = ["full_attention", "linear_attention"]
    spec = spec_of({"model_type": "qwen3_5_text", "num_hidden_layers": 2, "layer_types": kinds})
    assert [layer.attention.mixer is None for layer in spec.layers] == [True, False]
    with pytest.raises(ModelError, match="layer_types"):
        spec_of({"model_type": "qwen3_next", "layer_types": ["sliding_attention"] * 48})


def test_a_delta_nets_state_does_not_grow() -> None:
    """A longer prompt adds keys and values to the full layers only."""
    config = {"model_type": "qwen3_next", "num_hidden_layers": 4, "vocab_size": 500}

    def held(length: int) -> int:
        case = Case.from_dict({"model": config, "sequence_length": length, "max_new_tokens": 2})
        return estimate(case).phases[-1].end_allocated_bytes

    spec = spec_of(config)
    a_token = sum(spec.layers[3].attention.cached_features) * 2
    # Ids, mask and positions grow, too; tensors are so large that each has a segment of its own.
    grown = held(32_768) - held(16_384)
    assert grown == pytest.approx(16_384 * (a_token + 3 * 8), rel=0.001)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "youtu", "gpt_oss", "qwen3_next"])
def test_caches_that_fail_are_refused(model_type: str) -> None:
    config = {**LATENT, "model_type": model_type, "num_local_experts": 8, "num_experts": 8}
    case = Case.from_dict({"model": config, "cache": "quantized"})
    with pytest.raises(UnsupportedError, match=r"quantized.*use cache dynamic or static"):
        estimate(case)


def test_jitter_has_no_formula() -> None:
    with pytest.raises(UnsupportedError, match="gpumem trace"):
        spec_of({"model_type": "minimax_m2", "router_jitter_noise": 0.1})


GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 300,
    "vocab_size": 500,
}


def test_layers_that_read_others_keys_have_none_and_cache_none() -> None:
    own, shared = spec_of(GEMMA4), spec_of(GEMMA4, num_kv_shared_layers=2)
    missing = 0
    for layer in own.layers[2:]:
        block = layer.attention
        assert block.key is not None
        # Keys and values, and the keys' norm.
        missing += 2 * block.key.weight_count + block.head_dim
    assert own.parameters - shared.parameters == missing
    cached = [layer.attention.cached_features for layer in shared.layers]
    assert cached == [(64, 64), (1024, 1024), (), ()]


@pytest.mark.parametrize("count", [3, 4])
def test_layers_read_keys_of_a_layer_of_their_kind_only(count: int) -> None:
    with pytest.raises(ModelError, match=f"num_kv_shared_layers is {count}, but must be"):
        spec_of(GEMMA4, num_kv_shared_layers=count)


def test_inputs_by_token_take_a_table_that_no_quantization_shrinks() -> None:
    more = spec_of(GEMMA4).parameters - spec_of(GEMMA4, hidden_size_per_layer_input=0).parameters
    table, projection, norm = 300 * 4 * 16, 128 * 4 * 16, 16
    assert more == table + projection + norm + 4 * (2 * 128 * 16 + 128)
    for quantization in (None, "nf4"):
        wider, narrower = (
            inventory(spec_of(GEMMA4, vocab_size_per_layer_input=rows), None) for rows in (301, 300)
        )
        case = Case(model=GEMMA4, quantization=quantization)
        bytes_more = weights(case, wider).requested_bytes - weights(case, narrower).requested_bytes
        assert bytes_more == 2 * 4 * 16


def test_sliding_layers_of_mimo_have_sinks_and_twice_the_key_heads() -> None:
    full, sliding = spec_of({"model_type": "mimo_v2_flash"}).layers[:2]
    assert (full.attention.kv_heads, sliding.attention.kv_heads) == (4, 8)
    assert (full.attention.sinks, sliding.attention.sinks) == (False, True)
    assert full.attention.cached_features == (4 * 192, 4 * 128)


def test_mimo_refuses_key_heads_whose_double_does_not_divide() -> None:
    with pytest.raises(ModelError, match="num_key_value_heads is 64, but must be a divisor"):
        spec_of({"model_type": "mimo_v2_flash", "num_key_value_heads": 64})


def test_an_indexers_keys_are_cached_beside_the_heads() -> None:
    indexed = {**LATENT, "index_n_heads": 4, "index_head_dim": 32}
    one = spec_of({**indexed, "model_type": "deepseek_v32"}).layers[0].attention
    assert one.cached_features == (4 * 48, 4 * 24, 32)
    own = {"num_hidden_layers": 3, "index_topk_pattern": "FSF"}
    layers = spec_of({**indexed, "model_type": "glm_moe_dsa", **own}).layers
    assert [len(layer.attention.cached_features) for layer in layers] == [3, 2, 3]
    assert [len(layer.idle) for layer in layers] == [4, 0, 4]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"q_lora_rank": None}, "q_lora_rank is None, but must be a size"),
        ({"index_head_dim": 8}, "index_head_dim is 8, but must be at least qk_rope_head_dim, 16"),
        ({"indexer_types": ["shared", "full", "full"]}, "but must be full at first"),
        ({"index_topk_pattern": "FS"}, "but must be 3 letters F or S"),
    ],
)
def test_an_impossible_indexer_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        spec_of({**LATENT, "model_type": "glm_moe_dsa"}, **fields)


def test_adapters_on_experts_in_a_loop_are_refused_with_the_way_out() -> None:
    fields: dict[str, Any] = {"model": {"model_type": "longcat_flash"}, "task": "training"}
    with pytest.raises(UnsupportedError, match="name other target_modules"):
        estimate(Case.from_dict({**fields, "method": "lora"}))
    own = {"target_modules": ["q_b_proj", "o_proj"]}
    adapted = estimate(Case.from_dict({**fields, "method": "lora", "lora": own}))
    # Two attentions a layer.
    sizes = 2 * 28 * 16 * ((1536 + 64 * 192) + (64 * 128 + 6144))
    assert adapted.parameters.trainable == sizes


GEMMA3N: dict[str, Any] = {
    "model_type": "gemma3n_text",
    "hidden_size": 128,
    "intermediate_size": [256, 256, 128, 128],
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size": 500,
    "vocab_size_per_layer_input": 300,
}


def test_gemma3n_flows_in_streams_and_cuts_the_gates_of_its_first_layers_off() -> None:
    spec = spec_of(GEMMA3N, activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0])
    assert spec.stream_size == 4 * 128
    assert [layer.attention.cached_features for layer in spec.layers][2:] == [(), ()]
    cut = [getattr(layer.mlp, "cut_off", None) for layer in spec.layers]
    assert cut == [True, False, False, False]


def test_layers_like_earlier_ones_stand_between_named_keys_and_those_that_read_them() -> None:
    sliding, full = "sliding_attention", "full_attention"
    fields = {
        **GEMMA3N,
        "intermediate_size": 256,
        "num_hidden_layers": 7,
        # The fifth is like the first, which was played before the fourth named its keys.
        "layer_types": [sliding, sliding, full, full, sliding, sliding, full],
        "num_kv_shared_layers": 1,
    }
    case = {"model": fields, "task": "training", "sequence_length": 64}
    assert estimate(Case.from_dict(case)).peak.phase == "backward"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"intermediate_size": [256, 128]}, "but must be a width, or a list of 4"),
        ({"activation_sparsity_pattern": [0.9]}, "but must be a list of 4 shares"),
        ({"activation_sparsity_pattern": ["much"] * 4}, "but must be a number a layer"),
    ],
)
def test_an_impossible_field_of_gemma3n_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        spec_of(GEMMA3N, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"mixed_precision": "bf16"},
        {"task": "training", "method": "lora", "quantization": "nf4"},
    ],
)
def test_what_gemma3n_has_no_formulas_for_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="use gpumem trace"):
        estimate(Case.from_dict({"model": GEMMA3N, **fields}))
