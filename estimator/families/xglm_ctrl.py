"""XGLM and CTRL: positions from a table that is computed, not learned.

Source: transformers/models/{xglm,ctrl}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm

_OFFSET = 2
"""Rows before the first position's."""


def parse_xglm(reader: ConfigReader) -> ModelSpec:
    """XGLMForCausalLM: fairseq's decoder; no sdpa."""
    hidden = reader.size("d_model", "hidden_size", default=1024)
    heads = reader.size("attention_heads", "num_attention_heads", default=16)
    count = reader.size("num_layers", "num_hidden_layers", default=24, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=256008)
    for name in ("layerdrop", "activation_dropout"):
        if reader.fraction(name, 0.0):
            raise reader.unsupported(name)
    if reader.flag("add_cross_attention", False):
        raise reader.unsupported("add_cross_attention")
    dropout = reader.fraction("dropout", 0.1)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("d_model", hidden, "attention_heads", heads),
        query=Linear("q_proj", hidden, hidden, True),
        key=Linear("k_proj", hidden, hidden, True),
        value=Linear("v_proj", hidden, hidden, True),
        fused=None,
        output=Linear("out_proj", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_dropout", 0.1),
        recipe="xglm",
    )
    norm = Norm("layer", hidden)
    mlp = two_linears(
        hidden,
        reader.size("ffn_dim", default=4096),
        "fc1",
        "fc2",
        reader.text("activation_function", "gelu"),
    )
    positions = reader.size("max_position_embeddings", default=2048)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(Layer(norm, attention, norm, mlp, dropout=dropout, recipe="inlined_nested"),)
        * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        fixed_positions=positions + _OFFSET,
        embedding_scaled=True,
        embedding_dropout=dropout,
        rope_tables=0,
        max_positions=positions,
        attentions=("eager",),
        caches=("dynamic",),
    )


def parse_ctrl(reader: ConfigReader) -> ModelSpec:
    """CTRLLMHeadModel: the table is fp32 until the first forward pass casts it."""
    hidden = reader.size("n_embd", "hidden_size", default=1280)
    heads = reader.size("n_head", "num_attention_heads", default=16)
    count = reader.size("n_layer", "num_hidden_layers", default=48, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=246534)
    positions = reader.size("n_positions", "max_position_embeddings", default=256)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("n_embd", hidden, "n_head", heads),
        query=Linear("Wq", hidden, hidden, True),
        key=Linear("Wk", hidden, hidden, True),
        value=Linear("Wv", hidden, hidden, True),
        fused=None,
        output=Linear("dense", hidden, hidden, True),
        rotary=False,
        eager="plain",
    )
    norm = Norm("layer", hidden)
    layer = Layer(
        norm,
        attention,
        norm,
        two_linears(hidden, reader.size("dff", default=8192), "0", "2", "relu"),
        dropout=reader.fraction("resid_pdrop", 0.1),
        holds_attended=True,
        holds_attended_input=True,
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab, True),
        tied=reader.flag("tie_word_embeddings", True),
        fixed_positions=positions,
        fixed_positions_cast=True,
        embedding_dropout=reader.fraction("embd_pdrop", 0.1),
        rope_tables=0,
        max_positions=positions,
        checkpointable=False,
    )
