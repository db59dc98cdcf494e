"""OPT and BioGPT: fairseq's decoders, with learned positions and separate projections.

Source: transformers/models/{opt,biogpt}/modeling_*.py and configuration_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm

_OFFSET = 2
"""Rows before the first position's."""


def parse_opt(reader: ConfigReader) -> ModelSpec:
    """OPTForCausalLM: norms before the blocks; in 350m behind them, and narrower embeddings."""
    hidden = reader.size("hidden_size", default=768)
    vocab = reader.size("vocab_size", default=50272)
    narrow = reader.size("word_embed_proj_dim", default=hidden)
    projected = narrow != hidden
    before = reader.flag("do_layer_norm_before", True)
    if not reader.flag("layer_norm_elementwise_affine", True):
        raise reader.unsupported("layer_norm_elementwise_affine false")
    if reader.flag("_remove_final_layer_norm", False):
        raise reader.unsupported("_remove_final_layer_norm")
    bias = reader.flag("enable_bias", True)
    layer = _layer(
        reader,
        hidden,
        heads=reader.size("num_attention_heads", default=12),
        width=reader.size("ffn_dim", default=3072),
        bias=bias,
        activation=reader.text("activation_function", "relu"),
        dropout=reader.fraction("dropout", 0.1),
        attention_dropout=reader.fraction("attention_dropout", 0.0),
        multiplied=True,
    )
    if not before:
        norm = Norm("layer", hidden)
        layer = replace(
            layer,
            input_norm=None,
            post_norm=None,
            attention_out_norm=norm,
            mlp_out_norm=norm,
            recipe="post_norm_flat",
        )
    positions = reader.size("max_position_embeddings", default=2048)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * reader.size("num_hidden_layers", default=12, most=MAX_LAYERS),
        final_norm=Norm("layer", hidden) if before else None,
        head=Linear("lm_head", narrow, vocab),
        project_in=Linear("project_in", narrow, hidden) if projected else None,
        project_out=Linear("project_out", hidden, narrow) if projected else None,
        tied=reader.flag("tie_word_embeddings", True),
        position_rows=positions + _OFFSET,
        positions_counted=True,
        position_offset=True,
        rope_tables=0,
        max_positions=positions,
    )


def parse_biogpt(reader: ConfigReader) -> ModelSpec:
    """BioGptForCausalLM: scaled embeddings, a softmax in the weights' dtype."""
    hidden = reader.size("hidden_size", default=1024)
    vocab = reader.size("vocab_size", default=42384)
    if reader.fraction("activation_dropout", 0.0):
        raise reader.unsupported("activation_dropout")
    dropout = reader.fraction("hidden_dropout_prob", 0.1)
    layer = _layer(
        reader,
        hidden,
        heads=reader.size("num_attention_heads", default=16),
        width=reader.size("intermediate_size", default=4096),
        bias=True,
        activation=reader.text("hidden_act", "gelu"),
        dropout=dropout,
        attention_dropout=reader.fraction("attention_probs_dropout_prob", 0.1),
        multiplied=False,
    )
    positions = reader.size("max_position_embeddings", default=1024)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * reader.size("num_hidden_layers", default=24, most=MAX_LAYERS),
        final_norm=Norm("layer", hidden),
        head=Linear("output_projection", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        position_rows=positions + _OFFSET,
        position_offset=True,
        embedding_scaled=True,
        embedding_dropout=dropout,
        rope_tables=0,
        max_positions=positions,
    )


def _layer(
    reader: ConfigReader,
    hidden: int,
    heads: int,
    width: int,
    bias: bool,
    activation: str,
    dropout: float,
    attention_dropout: float,
    multiplied: bool,
) -> Layer:
    if reader.fraction("layerdrop", 0.0):
        raise reader.unsupported("layerdrop")
    norm = Norm("layer", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("hidden_size", hidden, "num_attention_heads", heads),
        query=Linear("q_proj", hidden, hidden, bias),
        key=Linear("k_proj", hidden, hidden, bias),
        value=Linear("v_proj", hidden, hidden, bias),
        fused=None,
        output=Linear("out_proj", hidden, hidden, bias),
        rotary=False,
        dropout=attention_dropout,
        eager="fp32_softmax" if multiplied else "plain",
        query_multiplied=multiplied,
    )
    mlp = two_linears(hidden, width, "fc1", "fc2", activation, bias)
    return Layer(
        norm,
        attention,
        norm,
        mlp,
        dropout=dropout,
        recipe="inlined_flat" if multiplied else "inlined",
    )
