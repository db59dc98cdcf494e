"""OLMo, OLMo 2 and OLMo 3: norms without parameters or behind the blocks, fp32 tables.

Source: transformers/models/{olmo,olmo2,olmo3}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.errors import UnsupportedError
from estimator.families.blocks import (
    Sizes,
    attention,
    by_kind,
    every,
    gated_mlp,
    layer_windows,
    model,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """OlmoForCausalLM: LayerNorm in fp32 without parameters."""
    if reader.number("clip_qkv", None) is not None:
        raise UnsupportedError(
            f"the architecture formulas know no clip_qkv, which {reader.name} sets: "
            "use gpumem trace"
        )
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    norm = Norm("layer_fp32", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    block = attention(reader, sizes, bias, bias, rotary_style="fp32_tables")
    layer = Layer(norm, block, norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_olmo2(reader: ConfigReader) -> ModelSpec:
    """Olmo2ForCausalLM: norms behind the blocks, and over all heads of queries and of keys."""
    sizes = read_sizes(reader)
    layer = _layer(reader, sizes, None)
    norm = Norm("rms_scaled_before_cast", sizes.hidden)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_olmo3(reader: ConfigReader) -> ModelSpec:
    """Olmo3ForCausalLM: OLMo 2 with three sliding layers of four, and tables a kind of layer."""
    sizes = read_sizes(reader)
    window = reader.size("sliding_window", default=4096)
    windows = layer_windows(reader, sizes.count, window, every(sizes.count, 4))
    return model(
        reader,
        sizes,
        by_kind(windows, lambda seen: _layer(reader, sizes, seen)),
        Norm("rms_scaled_before_cast", sizes.hidden),
        tied=False,
        masks=(None, window),
        rope_tables=2 * len(set(windows)),
    )


def _layer(reader: ConfigReader, sizes: Sizes, window: int | None) -> Layer:
    norm = Norm("rms_scaled_before_cast", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    block = _attention(reader, sizes, window)
    return Layer(None, block, None, mlp, attention_out_norm=norm, mlp_out_norm=norm)


def _attention(reader: ConfigReader, sizes: Sizes, window: int | None) -> Attention:
    bias = reader.flag("attention_bias", False)
    return attention(
        reader,
        sizes,
        bias,
        bias,
        qk_norm=Norm("rms_scaled_before_cast", sizes.heads * sizes.head_dim),
        key_norm=Norm("rms_scaled_before_cast", sizes.kv_heads * sizes.head_dim),
        rotary_style="fp32_tables",
        window=window,
    )
