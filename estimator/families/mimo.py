"""MiMo-V2-Flash: values narrower than keys, sinks and more key heads in sliding layers, experts.

Source: transformers/models/mimo_v2_flash/{modeling,configuration}_mimo_v2_flash.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import every, layer_windows
from estimator.families.moe import layer_count, model_of
from estimator.families.moe_shared import (
    GroupedDefaults,
    after_first,
    by_mlp_type,
    correction_biases,
    grouped_blocks,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Linear, ModelSpec, Moe


def parse(reader: ConfigReader) -> ModelSpec:
    """MiMoV2FlashForCausalLM: eager attention only; peft adapts no experts."""
    hidden = reader.size("hidden_size", default=4096)
    count = layer_count(reader, 48)
    window = reader.size("sliding_window", default=128)
    slides = every(count, 6)
    slides[0] = False
    windows = layer_windows(reader, count, window, slides)
    sparse = by_mlp_type(reader, count, after_first(reader, count, 1))
    defaults = GroupedDefaults(16384, 2048, 256, adapted=False)
    blocks = [
        replace(block, shared=None) if isinstance(block, Moe) else block
        for block in grouped_blocks(reader, hidden, sparse, defaults)
    ]
    kinds = {seen: _attention(reader, hidden, seen) for seen in set(windows)}
    layers = [(kinds[seen], block) for seen, block in zip(windows, blocks, strict=True)]
    spec = model_of(reader, hidden, 152576, layers)
    return replace(
        spec,
        buffers=correction_biases(blocks),
        rope_tables=2 * len(kinds),
        attentions=("eager",),
        caches=("dynamic", "static"),
    )


def _attention(reader: ConfigReader, hidden: int, window: int | None) -> Attention:
    heads = reader.size("num_attention_heads", default=64)
    kv_heads = reader.size("num_key_value_heads", default=4) * (1 if window is None else 2)
    if heads % kv_heads:
        allowed = f"a divisor of the {heads} query heads, and so its double"
        raise reader.error("num_key_value_heads", reader.config["num_key_value_heads"], allowed)
    d = reader.size("head_dim", default=192)
    value = reader.size("v_head_dim", default=128)
    bias = reader.flag("attention_bias", False)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=d,
        query=Linear("q_proj", hidden, heads * d, bias),
        key=Linear("k_proj", hidden, kv_heads * d, bias),
        value=Linear("v_proj", hidden, kv_heads * value, bias),
        fused=None,
        output=Linear("o_proj", heads * value, hidden),
        window=window,
        dropout=reader.fraction("attention_dropout", 0.0),
        eager="shifted",
        rotary_dim=reader.rotary_dim(d, "partial_rotary_factor", 0.334),
        value_dim=value,
        value_scaled=True,
        sinks=window is not None,
    )
