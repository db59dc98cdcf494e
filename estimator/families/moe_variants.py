"""Mixtures of experts that vary known ones: FlexOlmo, MiniMax-M2, Granite with a shared expert.

Source: transformers/models/{flex_olmo,minimax_m2,granitemoeshared}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.moe import (
    MIXTRAL_NAMES,
    QWEN_NAMES,
    attention_of,
    layer_count,
    model_of,
    parse_granitemoe,
)
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
