"""GPT-NeoX and Pythia: layer norms, fused query-key-value, partial rotary, parallel residual.

Source: transformers/models/gpt_neox/{modeling,configuration}_gpt_neox.py.
"""

from __future__ import annotations

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """GPTNeoXForCausalLM: biases everywhere but in the head; 25 % of a head is rotated."""
    hidden = reader.size("hidden_size")
    width = reader.size("intermediate_size")
    count = reader.size("num_hidden_layers", most=MAX_LAYERS)
    vocab = reader.size("vocab_size")
    heads = reader.size("num_attention_heads")
    head_dim = reader.divided("hidden_size", hidden, "num_attention_heads", heads)
    bias = reader.flag("attention_bias", True)
    dropout = reader.fraction("hidden_dropout", 0.0)
    norm = Norm("layer", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        query=None,
        key=None,
        value=None,
        fused=Linear("query_key_value", hidden, 3 * hidden, bias),
        output=Linear("dense", hidden, hidden, bias),
        dropout=reader.fraction("attention_dropout", 0.0),
        rotary_dim=reader.rotary_dim(head_dim, "rotary_pct", 0.25),
        recipe="split",
    )
    mlp = two_linears(
        hidden, width, "dense_h_to_4h", "dense_4h_to_h", reader.text("hidden_act", "gelu")
    )
    parallel = reader.flag("use_parallel_residual", True)
    recipe = "split_parallel" if parallel else "pre_norm"
    layer = Layer(norm, attention, norm, mlp, dropout=dropout, recipe=recipe)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", False),
        embedding_dropout=dropout,
        max_positions=reader.optional_size("max_position_embeddings"),
    )
