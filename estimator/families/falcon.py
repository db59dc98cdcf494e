"""Falcon: multi-query (7B), grouped queries (40B, 180B, 11B), and biases by distance (RW).

Source: transformers/models/falcon/{modeling,configuration}_falcon.py.
"""

from __future__ import annotations

from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """FalconForCausalLM: which of the three it is follows from `new_decoder_architecture`,
    `multi_query`, `parallel_attn` and `alibi`."""
    hidden = reader.size("hidden_size", default=4544)
    heads = reader.size("num_attention_heads", default=71)
    count = reader.size("num_hidden_layers", default=32, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=65024)
    d = reader.divided("hidden_size", hidden, "num_attention_heads", heads)
    bias = reader.flag("bias", False)
    grouped = reader.flag("new_decoder_architecture", False)
    alibi = reader.flag("alibi", False)
    parallel = reader.flag("parallel_attn", True)
    if grouped and not parallel:
        raise reader.unsupported("new_decoder_architecture without parallel_attn")
    kv_heads = heads
    projected = heads
    if grouped:
        # Keys and values are repeated for all heads at once, and cached so.
        projected = reader.size("num_kv_heads", default=heads, most=heads)
        reader.divided("num_attention_heads", heads, "num_kv_heads", projected)
    elif reader.flag("multi_query", True):
        kv_heads = projected = 1
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=d,
        query=None,
        key=None,
        value=None,
        fused=Linear("query_key_value", hidden, (heads + 2 * projected) * d, bias, own_class=True),
        output=Linear("dense", hidden, hidden, bias, own_class=True),
        rotary=not alibi,
        dropout=reader.fraction("attention_dropout", 0.0),
        recipe="falcon",
        masked=True,
        enable_gqa=False,
        distances="tokens" if alibi else None,
    )
    width = reader.size("ffn_hidden_size", default=4 * hidden)
    mlp = Mlp(
        gate=None,
        up=Linear("dense_h_to_4h", hidden, width, bias, own_class=True),
        down=Linear("dense_4h_to_h", width, hidden, bias, own_class=True),
        activation=reader.text("activation", "gelu"),
    )
    norm = Norm("layer", hidden)
    norms = reader.size("num_ln_in_parallel_attn", default=2 if grouped else 1, most=2)
    layer = Layer(
        norm,
        attention,
        norm if not parallel or (grouped and norms == 2) else None,
        mlp,
        dropout=reader.fraction("hidden_dropout", 0.0),
        parallel=parallel,
        recipe="falcon",
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        max_positions=reader.size("max_position_embeddings", default=2048),
        mask_style="by_head" if alibi else "always",
        attentions=("sdpa", "eager"),
        caches=("dynamic", "quantized") if alibi else ("dynamic", "static", "quantized"),
        returns_probabilities=True,
    )
