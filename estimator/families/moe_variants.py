"""Mixtures of experts that vary known ones: FlexOlmo, MiniMax-M2, Mellum, shared experts.

Source: transformers/models/{flex_olmo,minimax_m2,granitemoeshared}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import layer_windows
from estimator.families.moe import (
    MIXTRAL_NAMES,
    QWEN_NAMES,
    attention_of,
    gated_mlp,
    layer_count,
    model_of,
    parse_granitemoe,
)
from estimator.families.moe_shared import by_mlp_type
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Linear, Mlp, ModelSpec, Moe, Norm


def parse_flex_olmo(reader: ConfigReader) -> ModelSpec:
    """FlexOlmoForCausalLM: OLMo 2's attention and norms behind the blocks, OLMoE's experts."""
    hidden = reader.size("hidden_size", default=4096)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=11008),
        experts=reader.size("num_experts", "num_local_experts", default=7),
        active=reader.size("num_experts_per_tok", default=5),
        activation=reader.text("hidden_act", "silu"),
        normed=reader.flag("norm_topk_prob", False),
        adapter_names=QWEN_NAMES,
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 32, None, qkv_bias=bias, output_bias=bias)
    attention = _normed_over_heads(attention, "rms_scaled_before_cast")
    attention = replace(attention, rotary_style="fp32_tables")
    spec = model_of(reader, hidden, 100352, [(attention, mixture)] * layer_count(reader, 32))
    norm = Norm("rms_scaled_before_cast", hidden)
    layers = tuple(
        replace(layer, input_norm=None, post_norm=None, attention_out_norm=norm, mlp_out_norm=norm)
        for layer in spec.layers
    )
    return replace(spec, layers=layers, final_norm=norm)


def parse_minimax_m2(reader: ConfigReader) -> ModelSpec:
    """MiniMaxM2ForCausalLM: norms over all heads, partial rotary positions, sigmoid scores."""
    hidden = reader.size("hidden_size", default=3072)
    if reader.config.get("router_jitter_noise"):
        raise reader.unsupported("router_jitter_noise")
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=1536),
        experts=reader.size("num_local_experts", "num_experts", default=256),
        active=reader.size("num_experts_per_tok", default=8),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid",
        normed=True,
        adapter_names=MIXTRAL_NAMES,
    )
    attention = attention_of(reader, hidden, 48, 8, default_head_dim=128)
    attention = replace(
        _normed_over_heads(attention, "rms"),
        rotary_dim=reader.rotary_dim(attention.head_dim, "partial_rotary_factor", 1.0),
    )
    spec = model_of(reader, hidden, 200064, [(attention, mixture)] * layer_count(reader, 62))
    return replace(spec, buffers=(4 * mixture.experts,) * len(spec.layers))


def parse_phimoe(reader: ConfigReader) -> ModelSpec:
    """PhimoeForCausalLM: LayerNorms, a router that samples, and noise on the experts' input."""
    hidden = reader.size("hidden_size", default=4096)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=6400),
        experts=reader.size("num_local_experts", "num_experts", default=16),
        active=2,
        activation=reader.text("hidden_act", "silu"),
        router="sparse_mixer",
        jitter=bool(reader.fraction("input_jitter_noise", 0.0)),
        router_name="router",
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 32, 8, qkv_bias=bias, output_bias=bias)
    attention = replace(attention, window=reader.optional_size("sliding_window"))
    spec = model_of(reader, hidden, 32064, [(attention, mixture)] * layer_count(reader, 32))
    norm = Norm("layer", hidden)
    return replace(
        spec,
        layers=tuple(replace(layer, input_norm=norm, post_norm=norm) for layer in spec.layers),
        final_norm=norm,
        head=replace(spec.head, bias=reader.flag("lm_head_bias", False)),
    )


def parse_ernie4_5_moe(reader: ConfigReader) -> ModelSpec:
    """Ernie4_5_MoeForCausalLM: rotation in fp32, a router in fp32, mixtures in some layers."""
    hidden = reader.size("hidden_size", default=2560)
    bias = reader.flag("use_bias", False)
    width = reader.size("moe_intermediate_size", default=1536)
    shared = reader.count("moe_num_shared_experts", 2)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=reader.size("moe_num_experts", "num_experts", default=64),
        active=reader.size("moe_k", "num_experts_per_tok", default=6),
        activation=reader.text("hidden_act", "silu"),
        router="corrected_softmax",
        router_fp32=True,
        bias_frozen=True,
        shared=gated_mlp(reader, hidden, width * shared, bias, False) if shared else None,
        shared_order="first",
        shared_flat=True,
        adapter_names=QWEN_NAMES,
    )
    attention = attention_of(reader, hidden, 20, 4, qkv_bias=bias, output_bias=bias)
    attention = replace(attention, dropout=0.0, rotary_style="fp32_repeated")
    size = reader.size("intermediate_size", default=12288)
    dense = gated_mlp(reader, hidden, size, bias, adaptable=False)
    mixed = _ernie_mixtures(reader, layer_count(reader, 28))
    blocks: list[tuple[Attention, Mlp | Moe]] = [
        (attention, mixture if is_mixed else dense) for is_mixed in mixed
    ]
    spec = model_of(reader, hidden, 103424, blocks)
    return replace(
        spec,
        tied=reader.flag("tie_word_embeddings", True),
        head=replace(spec.head, bias=bias),
    )


def _ernie_mixtures(reader: ConfigReader, count: int) -> list[bool]:
    """Each `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`."""
    start = reader.count("moe_layer_start_index", 1)
    end = reader.config.get("moe_layer_end_index", -1)
    last = count - 1 if end == -1 else reader.count("moe_layer_end_index", 0)
    step = reader.size("moe_layer_interval", default=1)
    return [(index + 1) % step == 0 and start <= index <= last for index in range(count)]


def parse_hunyuan_v1_moe(reader: ConfigReader) -> ModelSpec:
    """HunYuanMoEV1ForCausalLM: norms behind the rotation, a linear in fp32 as router."""
    hidden = reader.size("hidden_size", default=4096)
    width = reader.size("intermediate_size", default=11008)
    experts = reader.size("num_experts", "num_local_experts", default=1)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("moe_topk", "num_experts_per_tok", default=1),
        activation=reader.text("hidden_act", "silu"),
        router="linear_softmax",
        router_linear=Linear("wg", hidden, experts, fp32=True),
        normed=True,
        shared=gated_mlp(reader, hidden, width, adaptable=False),
        shared_order="first",
        adapter_names=QWEN_NAMES,
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 32, None, qkv_bias=bias, output_bias=bias)
    attention = replace(attention, qk_norm=Norm("rms", attention.head_dim), norm_after_rotary=True)
    layers: list[tuple[Attention, Mlp | Moe]] = [(attention, mixture)] * layer_count(reader, 32)
    return model_of(reader, hidden, 290943, layers)


def parse_granitemoeshared(reader: ConfigReader) -> ModelSpec:
    """GraniteMoeSharedForCausalLM: GraniteMoe with an expert for all tokens."""
    spec = parse_granitemoe(reader)
    width = reader.count("shared_intermediate_size", 0)
    if not width:
        return spec
    shared = Mlp(
        gate=None,
        up=Linear("input_linear", spec.hidden_size, 2 * width),
        down=Linear("output_linear", width, spec.hidden_size),
        activation=reader.text("hidden_act", "silu"),
        fused_gate=True,
    )
    layers = []
    for layer in spec.layers:
        assert isinstance(layer.mlp, Moe)
        layers.append(replace(layer, mlp=replace(layer.mlp, shared=shared, shared_order="outside")))
    return replace(spec, layers=tuple(layers))


def _normed_over_heads(attention: Attention, kind: str) -> Attention:
    """Norms over all queries and over all keys at once."""
    d = attention.head_dim
    return replace(
        attention,
        qk_norm=Norm(kind, attention.heads * d),
        key_norm=Norm(kind, attention.kv_heads * d),
    )


def parse_mellum(reader: ConfigReader) -> ModelSpec:
    """MellumForCausalLM: Qwen3-MoE's layers, windows and rotary tables by `layer_types`.

    Source: transformers/models/mellum/{modeling,configuration}_mellum.py.
    """
    hidden = reader.size("hidden_size", default=2304)
    rope = reader.config.get("rope_parameters")
    if isinstance(rope, dict) and "partial_rotary_factor" in str(rope):
        raise reader.unsupported("a partial_rotary_factor by layer type")
    mixture = Moe(
        hidden=hidden,
        width=reader.size("moe_intermediate_size", default=896),
        experts=reader.size("num_experts", "num_local_experts", default=64),
        active=reader.size("num_experts_per_tok", default=8),
        activation=reader.text("hidden_act", "silu"),
        normed=reader.flag("norm_topk_prob", True),
        adapter_names=QWEN_NAMES,
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 32, 4, qkv_bias=bias, output_bias=bias, default_head_dim=128
    )
    attention = replace(attention, qk_norm=Norm("rms", attention.head_dim))
    count = layer_count(reader, 28)
    window = reader.size("sliding_window", default=1024)
    windows = layer_windows(reader, count, window, [False] * count)
    dense = gated_mlp(
        reader, hidden, reader.size("intermediate_size", default=7168), adaptable=False
    )
    sparse = by_mlp_type(reader, count, [True] * count)
    layers: list[tuple[Attention, Mlp | Moe]] = [
        (replace(attention, window=seen), mixture if mixed else dense)
        for seen, mixed in zip(windows, sparse, strict=True)
    ]
    spec = model_of(reader, hidden, 98304, layers)
    kinds = set(windows)
    return replace(spec, rope_tables=2 * len(kinds), masks=tuple(kinds) if any(kinds) else ())
