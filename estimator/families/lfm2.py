"""LFM2: gated short convolutions, and grouped attention in some layers.

Source: transformers/models/{lfm2,lfm2_moe}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.errors import ModelError
from estimator.families.blocks import Sizes, attention, by_kind, model
from estimator.families.counts import check_length, factor, kinds
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Moe, Norm, ShortConv
from estimator.units import round_up

_NAMES = ("gate", "w1", "w3", "w2")
"""Names that peft takes for the router and the stacked experts."""


def parse_lfm2(reader: ConfigReader) -> ModelSpec:
    """Lfm2ForCausalLM: dense; attention in all layers unless it says otherwise."""
    sizes = _sizes(reader, 2560, _width(reader))
    listed = _listed(reader, sizes.count)
    if not listed:
        given = reader.config.get("full_attn_idxs") is not None
        chosen = reader.indices("full_attn_idxs") if given else range(sizes.count)
        listed = ["full_attention" if i in chosen else "" for i in range(sizes.count)]
    mlp = _mlp(sizes.hidden, sizes.width)
    return _model(reader, sizes, [(kind, mlp) for kind in listed])


def parse_lfm2_moe(reader: ConfigReader) -> ModelSpec:
    """Lfm2MoeForCausalLM: experts in all layers but the first `num_dense_layers`."""
    sizes = _sizes(reader, 2048, reader.size("intermediate_size", default=7168))
    listed = _listed(reader, sizes.count)
    if not listed:
        raise ModelError(f"the configuration of {reader.name} lacks layer_types")
    first = reader.count("num_dense_layers", 2)
    mixture = Moe(
        hidden=sizes.hidden,
        width=reader.size("moe_intermediate_size", default=1792),
        experts=reader.size("num_experts", default=32),
        active=reader.size("num_experts_per_tok", default=4),
        activation="silu",
        router="sigmoid_half",
        normed=reader.flag("norm_topk_prob", True),
    )
    dense = _mlp(sizes.hidden, sizes.width)
    blocks: list[tuple[str, Mlp | Moe]] = [
        (kind, dense if index < first else mixture) for index, kind in enumerate(listed)
    ]
    spec = _model(reader, sizes, blocks)
    if not reader.flag("use_expert_bias", True):
        raise reader.unsupported("use_expert_bias false")
    mixtures = sum(isinstance(layer.mlp, Moe) for layer in spec.layers)
    return replace(spec, buffers=(4 * mixture.experts,) * mixtures)


def _sizes(reader: ConfigReader, hidden: int, width: int) -> Sizes:
    hidden = reader.size("hidden_size", default=hidden)
    given = "num_key_value_heads" in reader.config
    heads, kv_heads = reader.heads(None if given else 8, 32)
    return Sizes(
        hidden=hidden,
        width=width,
        count=reader.size("num_hidden_layers", default=32, most=MAX_LAYERS),
        vocab=reader.size("vocab_size", default=65536),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.head_dim(hidden, heads),
    )


def _listed(reader: ConfigReader, count: int) -> list[str]:
    listed = kinds(reader, ("layer_types",), ("linear_attention", "full_attention"))
    return check_length(reader, listed, count) if listed else []


def _width(reader: ConfigReader) -> int:
    """Two thirds of the configured width, times a factor, rounded up."""
    width = reader.size("block_ff_dim", "intermediate_size", default=12288)
    if not reader.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    multiplier = "block_ffn_dim_multiplier"
    if reader.config.get(multiplier, 1.0) is None:
        return width
    width = int(factor(reader, multiplier, 1.0) * width)
    return round_up(width, reader.size("block_multiple_of", default=256))


def _mlp(hidden: int, width: int) -> Mlp:
    return Mlp(
        gate=Linear("w1", hidden, width),
        up=Linear("w3", hidden, width),
        down=Linear("w2", width, hidden),
        activation="silu",
    )


def _model(reader: ConfigReader, sizes: Sizes, blocks: list[tuple[str, Mlp | Moe]]) -> ModelSpec:
    norm = Norm("rms", sizes.hidden)
    full = attention(
        reader, sizes, output="out_proj", qk_norm=Norm("rms", sizes.head_dim), dropout=0.0
    )
    short = _short(reader, sizes, full)

    def layer(item: tuple[str, Mlp | Moe]) -> Layer:
        kind, block = item
        return Layer(norm, full if kind == "full_attention" else short, norm, block)

    # The older name wins where both are given.
    tied = reader.flag("tie_embedding", reader.flag("tie_word_embeddings", True))
    spec = model(reader, sizes, by_kind(blocks, layer), norm, tied=tied)
    return replace(spec, tied=tied, caches=("dynamic", "static"))


def _short(reader: ConfigReader, sizes: Sizes, full: Attention) -> Attention:
    bias = reader.flag("conv_bias", False)
    return replace(
        full,
        query=None,
        key=None,
        value=None,
        qk_norm=None,
        output=Linear("out_proj", sizes.hidden, sizes.hidden, bias),
        recipe="short_conv",
        mixer=ShortConv(
            channels=sizes.hidden,
            kernel=reader.size("conv_L_cache", default=3),
            projection=Linear("in_proj", sizes.hidden, 3 * sizes.hidden, bias),
            bias=bias,
        ),
    )
