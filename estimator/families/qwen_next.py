"""Qwen3-Next and Qwen 3.5: gated delta nets in most layers, gated attention in the others.

Source: transformers/models/{qwen3_next,qwen3_5,qwen3_5_moe}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.moe import QWEN_NAMES, attention_of, gated_mlp, layer_count, model_of
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, DeltaNet, Layer, Linear, Mlp, ModelSpec, Moe, Norm


def parse_qwen3_next(reader: ConfigReader) -> ModelSpec:
    """Qwen3NextForCausalLM: mixtures with a shared expert; two projections of a delta net."""
    hidden = reader.size("hidden_size", default=2048)
    count = layer_count(reader, 48)
    mixture = _mixture(reader, hidden, experts=512, active=10)
    mixture = replace(mixture, normed=reader.flag("norm_topk_prob", True))
    dense = gated_mlp(
        reader, hidden, reader.size("intermediate_size", default=5632), adaptable=False
    )
    step, only = reader.size("decoder_sparse_step", default=1), reader.indices("mlp_only_layers")
    blocks: list[Mlp | Moe] = [
        mixture if index not in only and (index + 1) % step == 0 else dense
        for index in range(count)
    ]
    return _model(reader, hidden, 151936, blocks, kv_heads=2, ordered=True)


def parse_qwen3_5(reader: ConfigReader) -> ModelSpec:
    """Qwen3_5ForCausalLM of a text configuration: dense."""
    hidden = reader.size("hidden_size", default=4096)
    dense = gated_mlp(reader, hidden, reader.size("intermediate_size", default=12288))
    blocks: list[Mlp | Moe] = [dense] * layer_count(reader, 32)
    return _model(reader, hidden, 248320, blocks, kv_heads=4, ordered=False)


def parse_qwen3_5_moe(reader: ConfigReader) -> ModelSpec:
    """Qwen3_5MoeForCausalLM of a text configuration: mixtures in all layers.

    peft converts no targets of this type, so that its experts carry no adapters, and its shared
    expert's linears are targets like others.
    """
    hidden = reader.size("hidden_size", default=2048)
    mixture = _mixture(reader, hidden, experts=256, active=8)
    shared = gated_mlp(reader, hidden, reader.size("shared_expert_intermediate_size", default=512))
    mixture = replace(mixture, shared=shared, adapter_names=())
    blocks: list[Mlp | Moe] = [mixture] * layer_count(reader, 40)
    return _model(reader, hidden, 248320, blocks, kv_heads=2, ordered=False)


def _mixture(reader: ConfigReader, hidden: int, experts: int, active: int) -> Moe:
    shared_width = reader.size("shared_expert_intermediate_size", default=512)
    return Moe(
        hidden=hidden,
        width=reader.size("moe_intermediate_size", default=512),
        experts=reader.size("num_experts", default=experts),
        active=reader.size("num_experts_per_tok", default=active),
        activation=reader.text("hidden_act", "silu"),
        normed=True,
        shared=gated_mlp(reader, hidden, shared_width, adaptable=False),
        shared_order="first",
        shared_flat=True,
        shared_gate=Linear("shared_expert_gate", hidden, 1),
        adapter_names=QWEN_NAMES,
    )


def _model(
    reader: ConfigReader,
    hidden: int,
    vocab: int,
    blocks: list[Mlp | Moe],
    kv_heads: int,
    ordered: bool,
) -> ModelSpec:
    norm = Norm("rms_fp32_scale", hidden)
    full = _gated_attention(reader, hidden, kv_heads)
    linear = _delta_net(reader, hidden, full, ordered)
    mixers = [linear if kind else full for kind in _is_linear(reader, len(blocks))]
    spec = model_of(reader, hidden, vocab, list(zip(mixers, blocks, strict=True)))
    layers = tuple(
        Layer(norm, mixer, norm, block) for mixer, block in zip(mixers, blocks, strict=True)
    )
    return replace(
        spec,
        layers=layers,
        final_norm=norm,
        tables_by_sequence=not ordered,
        caches=("dynamic", "static"),
    )


def _gated_attention(reader: ConfigReader, hidden: int, kv_heads: int) -> Attention:
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 16, kv_heads, qkv_bias=bias, output_bias=bias, default_head_dim=256
    )
    d = attention.head_dim
    return replace(
        attention,
        query=Linear("q_proj", hidden, 2 * attention.heads * d, bias),
        qk_norm=Norm("rms_fp32_scale", d),
        rotary_dim=reader.rotary_dim(d, "partial_rotary_factor", 0.25),
        recipe="gated",
    )


def _delta_net(reader: ConfigReader, hidden: int, full: Attention, ordered: bool) -> Attention:
    key_heads = reader.size("linear_num_key_heads", default=16)
    value_heads = reader.size("linear_num_value_heads", default=32)
    reader.divided("linear_num_value_heads", value_heads, "linear_num_key_heads", key_heads)
    key_dim = reader.size("linear_key_head_dim", default=128)
    value_dim = reader.size("linear_value_head_dim", default=128)
    keys, values = key_heads * key_dim, value_heads * value_dim
    inputs: tuple[Linear, ...] = (
        Linear("in_proj_qkv", hidden, 2 * keys + values),
        Linear("in_proj_z", hidden, values),
        Linear("in_proj_b", hidden, value_heads),
        Linear("in_proj_a", hidden, value_heads),
    )
    if ordered:
        inputs = (
            Linear("in_proj_qkvz", hidden, 2 * keys + 2 * values),
            Linear("in_proj_ba", hidden, 2 * value_heads),
        )
    return replace(
        full,
        query=None,
        key=None,
        value=None,
        qk_norm=None,
        output=Linear("out_proj", values, hidden),
        recipe="delta_net",
        mixer=DeltaNet(
            key_heads=key_heads,
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            kernel=reader.size("linear_conv_kernel_dim", default=4),
            inputs=inputs,
            norm=Norm("rms", value_dim),
            ordered=ordered,
        ),
    )


def _is_linear(reader: ConfigReader, count: int) -> list[bool]:
    kinds = reader.config.get("layer_types")
    if kinds is None:
        every = reader.size("full_attention_interval", default=4)
        return [(index + 1) % every != 0 for index in range(count)]
    known = ("linear_attention", "full_attention")
    listed = isinstance(kinds, list) and all(kind in known for kind in kinds)
    if not listed or len(kinds) != count:
        raise reader.error("layer_types", kinds, f"a list of {count} names, {' or '.join(known)}")
    return [kind == "linear_attention" for kind in kinds]
