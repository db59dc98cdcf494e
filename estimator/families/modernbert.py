"""ModernBERT's decoder (Ettin): sliding and full layers, a transform in front of the head.

Source: transformers/models/modernbert_decoder/{modeling,configuration}_modernbert_decoder.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import attention, by_kind, layer_windows, model, read_sizes
from estimator.families.reader import ConfigReader
from estimator.spec import HeadTransform, Layer, Linear, Mlp, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """ModernBertDecoderForCausalLM: the first of each three layers attends to all tokens."""
    for name in ("attention_dropout", "mlp_dropout", "embedding_dropout"):
        if reader.fraction(name, 0.0):
            raise reader.unsupported(name)
    sizes = read_sizes(reader)
    d = reader.divided("hidden_size", sizes.hidden, "num_attention_heads", sizes.heads)
    sizes = replace(sizes, kv_heads=sizes.heads, head_dim=d)
    norm = Norm("layer" if reader.flag("norm_bias", False) else "layer_no_bias", sizes.hidden)
    bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    mlp = Mlp(
        gate=None,
        up=Linear("Wi", sizes.hidden, 2 * sizes.width, mlp_bias),
        down=Linear("Wo", sizes.width, sizes.hidden, mlp_bias),
        activation=reader.text("hidden_activation", "gelu"),
        fused_gate=True,
    )
    window = reader.size("local_attention", default=128, least=2) // 2
    every = reader.size("global_attn_every_n_layers", default=3)
    sliding = [index % every != 0 for index in range(sizes.count)]
    windows = layer_windows(reader, sizes.count, window, sliding)

    def layer(kind: tuple[bool, int | None]) -> Layer:
        first, seen = kind
        block = attention(
            reader, sizes, bias, bias, output="Wo", window=seen, rotary_style="fp32_twice"
        )
        # The embeddings' norm serves the first layer.
        return Layer(None if first else norm, block, norm, mlp, holds_attended=True)

    transform = HeadTransform(
        Linear("dense", sizes.hidden, sizes.hidden, reader.flag("classifier_bias", False)),
        reader.text("classifier_activation", "gelu"),
        norm,
    )
    kinds = [(index == 0, seen) for index, seen in enumerate(windows)]
    return model(
        reader,
        sizes,
        by_kind(kinds, layer),
        norm,
        tied=True,
        head_bias=reader.flag("decoder_bias", True),
        head_transform=transform,
        embedding_norm=norm,
        embedding_named=False,
        embedding_named_for_masks=True,
        caches=("dynamic", "static", "paged"),
        rope_tables=2 * len(set(windows)),
        positions_expanded=True,
        masks=(None, window),
    )
