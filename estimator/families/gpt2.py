"""GPT-2: layer norms, learned positions, fused query-key-value, plain MLP, dropout.

Source: transformers/models/gpt2/modeling_gpt2.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """GPT2LMHeadModel: tied embeddings by default; `n_inner` is 4 hidden sizes where null."""
    hidden = reader.size("hidden_size", "n_embd")
    heads = reader.size("num_attention_heads", "n_head")
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("n_embd", hidden, "n_head", heads),
        query=None,
        key=None,
        value=None,
        fused=Linear("c_attn", hidden, 3 * hidden, True),
        output=Linear("c_proj", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attn_pdrop", 0.1),
        eager="plain_cast",
    )
    return _model(
        reader,
        attention,
        hidden,
        count=reader.size("num_hidden_layers", "n_layer", most=MAX_LAYERS),
        vocab=reader.size("vocab_size"),
        activation="gelu_new",
    )


def parse_bigcode(reader: ConfigReader) -> ModelSpec:
    """GPTBigCodeForCausalLM: GPT-2 with one key/value head, unless `multi_query` is false.

    Source: transformers/models/gpt_bigcode/{modeling,configuration}_gpt_bigcode.py.
    """
    hidden = reader.size("hidden_size", "n_embd", default=768)
    heads = reader.size("num_attention_heads", "n_head", default=12)
    head_dim = reader.divided("n_embd", hidden, "n_head", heads)
    kv_heads = 1 if reader.flag("multi_query", True) else heads
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query=None,
        key=None,
        value=None,
        fused=Linear("c_attn", hidden, hidden + 2 * kv_heads * head_dim, True),
        output=Linear("c_proj", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attn_pdrop", 0.1),
        recipe="split",
    )
    spec = _model(
        reader,
        attention,
        hidden,
        count=reader.size("num_hidden_layers", "n_layer", default=12, most=MAX_LAYERS),
        vocab=reader.size("vocab_size", default=50257),
        activation="gelu_pytorch_tanh",
    )
    # The causal mask of all positions, one byte an entry.
    return replace(spec, buffers=(spec.position_rows * spec.position_rows,))


def _model(
    reader: ConfigReader,
    attention: Attention,
    hidden: int,
    count: int,
    vocab: int,
    activation: str,
) -> ModelSpec:
    """The rest of the model, which both share; `activation` is the default of theirs."""
    positions = reader.size("max_position_embeddings", "n_positions", default=1024)
    width = reader.size("n_inner", default=4 * hidden)
    norm = Norm("layer", hidden)
    mlp = two_linears(
        hidden, width, "c_fc", "c_proj", reader.text("activation_function", activation)
    )
    dropout = reader.fraction("resid_pdrop", 0.1)
    layer = Layer(norm, attention, norm, mlp, dropout=dropout, holds_attended=True)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        position_rows=positions,
        embedding_dropout=reader.fraction("embd_pdrop", 0.1),
        rope_tables=0,
        max_positions=positions,
    )
