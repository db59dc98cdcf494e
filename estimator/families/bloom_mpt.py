"""Bloom and MPT: positions are distances that bias the scores; one fused projection.

Source: transformers/models/{bloom,mpt}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from typing import Any

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm


def parse_bloom(reader: ConfigReader) -> ModelSpec:
    """BloomForCausalLM: biases everywhere but in the head; a norm behind the embeddings."""
    hidden = reader.size("hidden_size", "n_embed", default=64)
    heads = reader.size("n_head", "num_attention_heads", default=8)
    count = reader.size("n_layer", "num_hidden_layers", default=2, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=250880)
    for name in ("apply_residual_connection_post_layernorm", "slow_but_exact"):
        if reader.flag(name, False):
            raise reader.unsupported(name)
    norm = Norm("layer", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("hidden_size", hidden, "n_head", heads),
        query=None,
        key=None,
        value=None,
        fused=Linear("query_key_value", hidden, 3 * hidden, True),
        output=Linear("dense", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_dropout", 0.0),
        recipe="bloom",
        distances="tokens",
    )
    mlp = two_linears(hidden, 4 * hidden, "dense_h_to_4h", "dense_4h_to_h", "bloom_gelu")
    dropout = reader.fraction("hidden_dropout", 0.0)
    layer = Layer(norm, attention, norm, mlp, dropout=dropout, recipe="bloom")
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        rope_tables=0,
        position_ids=False,
        embedding_norm=norm,
        attentions=("eager",),
        caches=("dynamic",),
        returns_probabilities=True,
    )


def parse_mpt(reader: ConfigReader) -> ModelSpec:
    """MptForCausalLM: no biases at all; the MLP has four hidden sizes."""
    hidden = reader.size("d_model", "hidden_size", default=2048)
    heads = reader.size("n_heads", "num_attention_heads", default=16)
    count = reader.size("n_layers", "num_hidden_layers", default=24, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=50368)
    settings = _attention_settings(reader)
    # transformers takes whole numbers only for attn_pdrop: nothing is dropped.
    for name in ("clip_qkv", "attn_pdrop"):
        if settings.get(name):
            raise reader.unsupported(name)
    norm = Norm("layer_no_bias", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("d_model", hidden, "n_heads", heads),
        query=None,
        key=None,
        value=None,
        fused=Linear("Wqkv", hidden, 3 * hidden),
        output=Linear("out_proj", hidden, hidden),
        rotary=False,
        recipe="mpt",
        distances="positions",
    )
    mlp = two_linears(hidden, 4 * hidden, "up_proj", "down_proj", "gelu", False)
    layer = Layer(norm, attention, norm, mlp, holds_attended=True)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        rope_tables=0,
        position_ids=False,
        max_positions=reader.size("max_seq_len", default=2048),
        mask_style="boolean",
        attentions=("eager",),
        caches=("dynamic", "quantized"),
        returns_probabilities=True,
    )


def _attention_settings(reader: ConfigReader) -> dict[str, Any]:
    """Return the object `attn_config`, empty where it is absent."""
    value: Any = reader.config.get("attn_config")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise reader.error("attn_config", value, "an object")
    return value
