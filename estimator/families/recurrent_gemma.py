"""RecurrentGemma: linear recurrences, and local attention between them.

Source: transformers/models/recurrent_gemma/{modeling,configuration}_recurrent_gemma.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import Sizes, attention, by_kind, gated_mlp, model
from estimator.families.counts import kinds, layer_count
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, Linear, LinearRecurrence, ModelSpec, Norm

_KINDS = ("linear_attention", "full_attention")


def parse(reader: ConfigReader) -> ModelSpec:
    """RecurrentGemmaForCausalLM; `block_types` is repeated over the layers."""
    hidden = reader.size("hidden_size", default=2560)
    heads, kv_heads = reader.heads(None, 10)
    sizes = Sizes(
        hidden=hidden,
        width=reader.size("intermediate_size", default=7680) // 2,
        count=layer_count(reader, 26),
        vocab=reader.size("vocab_size", default=256000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.divided("hidden_size", hidden, "num_attention_heads", heads),
    )
    act = reader.text("hidden_activation", "gelu_pytorch_tanh")
    full = attention(
        reader,
        sizes,
        reader.flag("attention_bias", False),
        True,
        window=reader.size("attention_window_size", "sliding_window", default=2048),
        rotary_dim=reader.rotary_dim(sizes.head_dim, "partial_rotary_factor", 0.5),
        rotary_style="own",
    )
    mixed = _recurrence(reader, full, hidden, act)
    cycle = kinds(reader, ("block_types",), _KINDS) or [_KINDS[0], _KINDS[0], _KINDS[1]]
    listed = [cycle[index % len(cycle)] for index in range(sizes.count)]
    norm = Norm("rms_fp32_scale", hidden)
    mlp = gated_mlp(sizes, act, bias=True)
    layers = by_kind(
        listed,
        lambda kind: Layer(norm, full if kind == _KINDS[1] else mixed, norm, mlp, recipe="griffin"),
    )
    # Each attention has the inverse frequencies, twice; the embeddings' factor is in bfloat16.
    frequencies = (4 * (full.rotated_features // 2),) * 2
    return model(
        reader,
        sizes,
        layers,
        norm,
        tied=True,
        rope_tables=0,
        buffers=(*frequencies * listed.count(_KINDS[1]), 2),
        embedding_multiplied=True,
        embedding_apart=True,
        logits_softcap=True,
        caches=("dynamic", "static"),
    )


def _recurrence(reader: ConfigReader, full: Attention, hidden: int, act: str) -> Attention:
    width = reader.size("lru_width", default=hidden)
    reader.divided("lru_width", width, "num_attention_heads", full.heads)
    mixer = LinearRecurrence(
        width=width,
        heads=full.heads,
        kernel=reader.size("conv1d_width", default=4),
        inputs=(
            Linear("linear_y", hidden, width, True),
            Linear("linear_x", hidden, width, True),
        ),
        activation=act,
    )
    return replace(
        full,
        query=None,
        key=None,
        value=None,
        output=Linear("linear_out", width, hidden, True),
        recipe="linear_recurrence",
        mixer=mixer,
    )
