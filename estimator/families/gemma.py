"""Gemma (the first): Llama's blocks, with norms scaled in fp32 and scaled embeddings.

Source: transformers/models/gemma/modeling_gemma.py.
"""

from __future__ import annotations

from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """GemmaForCausalLM: `head_dim` 256 and tied embeddings by default."""
    hidden = reader.size("hidden_size")
    width = reader.size("intermediate_size")
    count = reader.size("num_hidden_layers", most=MAX_LAYERS)
    vocab = reader.size("vocab_size")
    heads, kv_heads = reader.heads()
    head_dim = reader.size("head_dim", default=256)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms_fp32_scale", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query=Linear("q_proj", hidden, heads * head_dim, bias),
        key=Linear("k_proj", hidden, kv_heads * head_dim, bias),
        value=Linear("v_proj", hidden, kv_heads * head_dim, bias),
        fused=None,
        output=Linear("o_proj", heads * head_dim, hidden, bias),
        dropout=reader.fraction("attention_dropout", 0.0),
    )
    mlp = Mlp(
        gate=Linear("gate_proj", hidden, width),
        up=Linear("up_proj", hidden, width),
        down=Linear("down_proj", width, hidden),
        activation=reader.text("hidden_act", "gelu_pytorch_tanh"),
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(Layer(norm, attention, norm, mlp),) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        embedding_scaled=True,
        max_positions=reader.optional_size("max_position_embeddings"),
    )
