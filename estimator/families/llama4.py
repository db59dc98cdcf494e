"""Llama 4, text: chunked attention, layers without rotary positions, experts that see all tokens.

Source: transformers/models/llama4/{modeling,configuration}_llama4.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import every
from estimator.families.moe import attention_of, gated_mlp, layer_count, model_of
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, Mlp, ModelSpec, Moe, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """Llama4ForCausalLM of a text configuration."""
    hidden = reader.size("hidden_size", default=5120)
    count = layer_count(reader, 48)
    width = reader.size("intermediate_size", default=8192)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=reader.size("num_local_experts", default=16),
        active=reader.size("num_experts_per_tok", default=1),
        activation=reader.text("hidden_act", "silu"),
        shared=gated_mlp(reader, hidden, width),
        router_name="router",
        every=True,
    )
    dense = gated_mlp(reader, hidden, reader.size("intermediate_size_mlp", default=16384))
    mixed = _mixed(reader, count)
    rotates, chunk = _rotating(reader, count), _chunks(reader, count)
    norm = Norm("rms_unnamed", hidden)

    def layer(index: int) -> Layer:
        attention = _attention(reader, hidden, rotates[index], chunk[index])
        block: Mlp | Moe = mixture if mixed[index] else dense
        return Layer(norm, attention, norm, block, holds_attended=True)

    spec = model_of(reader, hidden, 202048, [(_attention(reader, hidden, True, None), dense)])
    return replace(
        spec,
        layers=tuple(layer(index) for index in range(count)),
        final_norm=norm,
        masks=(None, reader.size("attention_chunk_size", default=8192)),
        attentions=("sdpa", "eager"),
        caches=("dynamic", "static"),
    )


def _attention(reader: ConfigReader, hidden: int, rotary: bool, chunk: int | None) -> Attention:
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 40, 8, qkv_bias=bias, output_bias=bias, default_head_dim=128
    )
    normed = rotary and reader.flag("use_qk_norm", True)
    return replace(
        attention,
        window=chunk,
        rotary=rotary,
        rotary_style="complex",
        eager="plain",
        qk_norm=Norm("l2", attention.head_dim) if normed else None,
        query_scaled=not rotary and reader.flag("attn_temperature_tuning", True),
        recipe="llama4",
    )


def _mixed(reader: ConfigReader, count: int) -> list[bool]:
    """Which layers are mixtures: `moe_layers`, or each `interleave_moe_layer_step`-th."""
    if reader.config.get("moe_layers") is not None:
        listed = reader.indices("moe_layers")
        return [index in listed for index in range(count)]
    step = reader.size("interleave_moe_layer_step", default=1)
    return [(index + 1) % step == 0 for index in range(count)]


def _rotating(reader: ConfigReader, count: int) -> list[bool]:
    """Read `no_rope_layers`, whose 1 means that a layer has rotary positions."""
    given = reader.config.get("no_rope_layers")
    if not given:
        return every(count, reader.size("no_rope_layer_interval", default=4))
    if not isinstance(given, list) or len(given) != count or any(x not in (0, 1) for x in given):
        raise reader.error("no_rope_layers", given, f"a list of {count} zeros and ones")
    return [bool(x) for x in given]


def _chunks(reader: ConfigReader, count: int) -> list[int | None]:
    """Each layer's chunk in tokens, or None; by `layer_types`, else where it rotates."""
    size = reader.size("attention_chunk_size", default=8192)
    kinds = reader.config.get("layer_types")
    if kinds is None:
        return [size if turns else None for turns in _rotating(reader, count)]
    known = ("chunked_attention", "full_attention")
    listed = isinstance(kinds, list) and all(kind in known for kind in kinds)
    if not listed or len(kinds) != count:
        raise reader.error("layer_types", kinds, f"a list of {count} names, {' or '.join(known)}")
    return [size if kind == "chunked_attention" else None for kind in kinds]
