"""Variants of Llama: Arcee, SmolLM3, Seed-OSS, Ministral, Apertus, Granite, ERNIE, and more.

Source: transformers/models/{arcee,smollm3,seed_oss,ministral,ministral3,apertus,granite,ernie4_5,
hunyuan_v1_dense,helium,cwm,exaone4}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.errors import ModelError
from estimator.families.blocks import (
    Sizes,
    attention,
    by_kind,
    every,
    gated_mlp,
    layer_windows,
    model,
    plain_mlp,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Layer, ModelSpec, Norm


def _biases(reader: ConfigReader) -> tuple[bool, bool]:
    return reader.flag("attention_bias", False), reader.flag("mlp_bias", False)


def parse_arcee(reader: ConfigReader) -> ModelSpec:
    """ArceeForCausalLM: an MLP without a gate, of squared relu."""
    sizes = read_sizes(reader)
    bias, mlp_bias = _biases(reader)
    norm = Norm("rms", sizes.hidden)
    act = reader.text("hidden_act", "relu2")
    mlp = plain_mlp(sizes, act, "up_proj", "down_proj", mlp_bias)
    layer = Layer(norm, attention(reader, sizes, bias, bias), norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_smollm3(reader: ConfigReader) -> ModelSpec:
    """SmolLM3ForCausalLM: each `no_rope_layer_interval`-th layer has no rotary positions."""
    sizes = read_sizes(reader, kv_heads=4)
    bias, mlp_bias = _biases(reader)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), mlp_bias)
    rotates = _rotating_layers(reader, sizes.count)
    window = reader.optional_size("sliding_window")
    windows: list[int | None] = [None] * sizes.count
    if window is not None and reader.flag("use_sliding_window", False):
        windows = layer_windows(reader, sizes.count, window, [not turns for turns in rotates])

    def layer(kind: tuple[bool, int | None]) -> Layer:
        block = attention(reader, sizes, bias, bias, rotary=kind[0], window=kind[1])
        return Layer(norm, block, norm, mlp)

    layers = by_kind(list(zip(rotates, windows, strict=True)), layer)
    masks = (None, window) if any(windows) else ()
    return model(reader, sizes, layers, norm, tied=True, masks=masks)


def _rotating_layers(reader: ConfigReader, count: int) -> list[bool]:
    """Read `no_rope_layers`, whose 1 means that a layer has rotary positions."""
    given = reader.config.get("no_rope_layers")
    if given is None:
        return every(count, reader.size("no_rope_layer_interval", default=4))
    if not isinstance(given, list) or len(given) != count or any(x not in (0, 1) for x in given):
        raise reader.error("no_rope_layers", given, f"a list of {count} zeros and ones")
    return [bool(x) for x in given]


def parse_seed_oss(reader: ConfigReader) -> ModelSpec:
    """SeedOssForCausalLM: biases on queries, keys and values; dropouts of 0.1 by default."""
    sizes = read_sizes(reader, head_dim=128, kv_heads=8)
    norm = Norm("rms", sizes.hidden)
    block = attention(
        reader,
        sizes,
        reader.flag("attention_bias", True),
        reader.flag("attention_out_bias", False),
        dropout=reader.fraction("attention_dropout", 0.1),
    )
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), reader.flag("mlp_bias", False))
    dropout = reader.fraction("residual_dropout", 0.1)
    layer = Layer(norm, block, norm, mlp, dropout=dropout)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_ministral(reader: ConfigReader) -> ModelSpec:
    """MinistralForCausalLM: Mistral with a window a layer; `head_dim` has no default."""
    reader.size("head_dim")
    sizes = read_sizes(reader, kv_heads=8)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    window = reader.size("sliding_window", default=4096)
    windows = layer_windows(reader, sizes.count, window, [True] * sizes.count)
    layers = by_kind(
        windows, lambda seen: Layer(norm, attention(reader, sizes, window=seen), norm, mlp)
    )
    return model(reader, sizes, layers, norm, tied=False, masks=(None, window))


def parse_ministral3(reader: ConfigReader) -> ModelSpec:
    """Ministral3ForCausalLM: queries are scaled by a factor of their position."""
    sizes = read_sizes(reader, head_dim=128, kv_heads=8)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    window = reader.optional_size("sliding_window")
    layer = Layer(norm, attention(reader, sizes, window=window, query_scaled=True), norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_apertus(reader: ConfigReader) -> ModelSpec:
    """ApertusForCausalLM: xIELU (two numbers and two buffers a layer), query and key norms."""
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms", sizes.hidden)
    act = reader.text("hidden_act", "xielu")
    mlp = plain_mlp(sizes, act, "up_proj", "down_proj", False)
    block = attention(
        reader, sizes, bias, bias, qk_norm=Norm("rms", sizes.head_dim), norm_after_projections=True
    )
    layer = Layer(norm, block, norm, mlp)
    buffers = (2, 2) * sizes.count if act == "xielu" else ()
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False, buffers=buffers)


def parse_granite(reader: ConfigReader) -> ModelSpec:
    """GraniteForCausalLM: embeddings, residuals and logits are multiplied by numbers."""
    sizes = read_sizes(reader)
    bias, mlp_bias = _biases(reader)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), mlp_bias)
    layer = Layer(norm, attention(reader, sizes, bias, bias), norm, mlp, residual_scaled=True)
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=False,
        embedding_multiplied=True,
        logits_scaled=True,
    )


def parse_ernie4_5(reader: ConfigReader) -> ModelSpec:
    """Ernie4_5ForCausalLM: `use_bias` everywhere, rotation in fp32, no attention dropout."""
    sizes = read_sizes(reader, head_dim=128, kv_heads=2)
    bias = reader.flag("use_bias", False)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), bias)
    block = attention(reader, sizes, bias, bias, dropout=0.0, rotary_style="fp32_repeated")
    layer = Layer(norm, block, norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=True)


def parse_hunyuan(reader: ConfigReader) -> ModelSpec:
    """HunYuanDenseV1ForCausalLM: norms behind the rotation; `head_dim` has no default."""
    reader.size("head_dim")
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    block = attention(
        reader, sizes, bias, bias, qk_norm=Norm("rms", sizes.head_dim), norm_after_rotary=True
    )
    layer = Layer(norm, block, norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_helium(reader: ConfigReader) -> ModelSpec:
    """HeliumForCausalLM: norms scaled before the cast; a square output projection."""
    sizes = read_sizes(reader, head_dim=128, kv_heads=20)
    if sizes.heads * sizes.head_dim != sizes.hidden:
        raise ModelError(
            f"the configuration of {reader.name} is impossible: head_dim {sizes.head_dim} times "
            f"num_attention_heads {sizes.heads} has to be hidden_size {sizes.hidden}"
        )
    bias, mlp_bias = _biases(reader)
    norm = Norm("rms_fp32_weight", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), mlp_bias)
    layer = Layer(norm, attention(reader, sizes, bias, rotary_style="repeated"), norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_cwm(reader: ConfigReader) -> ModelSpec:
    """CwmForCausalLM: the first of each four layers attends to all tokens."""
    sizes = read_sizes(reader, head_dim=128, kv_heads=8)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), reader.flag("mlp_bias", False))
    window = reader.size("sliding_window", default=8192)
    sliding = [index % 4 != 0 for index in range(sizes.count)]
    layers = by_kind(
        layer_windows(reader, sizes.count, window, sliding),
        lambda seen: Layer(norm, attention(reader, sizes, window=seen), norm, mlp),
    )
    return model(reader, sizes, layers, norm, tied=False, masks=(None, window))


def parse_exaone4(reader: ConfigReader) -> ModelSpec:
    """Exaone4ForCausalLM: norms behind the blocks; full layers beside sliding ones don't rotate."""
    sizes = read_sizes(reader, kv_heads=32)
    norm = Norm("rms", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    window = reader.optional_size("sliding_window")
    if "sliding_window" not in reader.config:
        window = 4096
    windows = _exaone4_windows(reader, sizes, window)

    def layer(seen: int | None) -> Layer:
        block = attention(
            reader,
            sizes,
            qk_norm=Norm("rms", sizes.head_dim),
            norm_after_projections=True,
            window=seen,
            rotary=window is None or seen is not None,
        )
        return Layer(None, block, None, mlp, attention_out_norm=norm, mlp_out_norm=norm)

    masks = (None, window) if any(windows) else ()
    return model(reader, sizes, by_kind(windows, layer), norm, tied=False, masks=masks)


def _exaone4_windows(reader: ConfigReader, sizes: Sizes, window: int | None) -> list[int | None]:
    """Without `layer_types`, each `sliding_window_pattern`-th layer attends to all tokens."""
    if reader.config.get("layer_types") is None:
        if window is None:
            raise ModelError(f"the configuration of {reader.name} lacks layer_types")
        pattern = reader.size("sliding_window_pattern", default=4)
        return layer_windows(reader, sizes.count, window, every(sizes.count, pattern))
    windows = layer_windows(reader, sizes.count, window or 0, [])
    if window is None and any(seen is not None for seen in windows):
        raise ModelError(f"the configuration of {reader.name} lacks sliding_window")
    return windows
