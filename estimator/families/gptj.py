"""GPT-J, CodeGen and GPT-Neo: attention in fp32, without sdpa.

Source: transformers/models/{gptj,codegen,gpt_neo}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """GPTJForCausalLM: attention and MLP side by side; biases in the MLP and the head."""
    return _parse(reader, fused=False)


def parse_codegen(reader: ConfigReader) -> ModelSpec:
    """CodeGenForCausalLM: GPT-J with one projection of queries, values and keys."""
    return _parse(reader, fused=True)


def _parse(reader: ConfigReader, fused: bool) -> ModelSpec:
    hidden = reader.size("n_embd", "hidden_size", default=4096)
    heads = reader.size("n_head", "num_attention_heads", default=16)
    count = reader.size("n_layer", "num_hidden_layers", default=28, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=50400)
    positions = reader.size("n_positions", "max_position_embeddings", default=2048)
    head_dim = reader.divided("n_embd", hidden, "n_head", heads)
    if "rotary_dim" in reader.config and reader.config["rotary_dim"] is None:
        raise reader.unsupported("rotary_dim null")
    rotary_dim = reader.size("rotary_dim", default=64, most=head_dim)
    if fused:
        reader.divided("n_head", heads, "the 4 parts of qkv_proj", 4)

    def projection(name: str) -> Linear | None:
        return None if fused else Linear(name, hidden, hidden)

    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        query=projection("q_proj"),
        key=projection("k_proj"),
        value=projection("v_proj"),
        fused=Linear("qkv_proj", hidden, 3 * hidden) if fused else None,
        output=Linear("out_proj", hidden, hidden),
        rotary_dim=rotary_dim,
        dropout=reader.fraction("attn_pdrop", 0.0),
        recipe="codegen" if fused else "gptj",
        positions=positions,
    )
    norm = Norm("layer", hidden)
    layer = Layer(
        norm,
        attention,
        None,
        _mlp(reader, hidden, reader.size("n_inner", default=4 * hidden), "fc_in", "fc_out"),
        dropout=reader.fraction("resid_pdrop", 0.0),
        recipe="summed_parallel",
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab, True),
        tied=reader.flag("tie_word_embeddings", False),
        embedding_dropout=reader.fraction("embd_pdrop", 0.0),
        rope_tables=0,
        max_positions=positions,
        # Each layer has sines and cosines of all positions, fp32.
        buffers=(4 * positions * rotary_dim,) * count,
        attentions=("eager",),
        caches=("dynamic", "static", "quantized"),
        returns_probabilities=True,
    )


def parse_gpt_neo(reader: ConfigReader) -> ModelSpec:
    """GPTNeoForCausalLM: GPT-2 with separate projections; local layers differ by a buffer only."""
    hidden = reader.size("hidden_size", default=2048)
    heads = reader.size("num_heads", "num_attention_heads", default=16)
    count = reader.size("num_layers", "num_hidden_layers", default=24, most=MAX_LAYERS)
    vocab = reader.size("vocab_size", default=50257)
    positions = reader.size("max_position_embeddings", default=2048)
    norm = Norm("layer", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("hidden_size", hidden, "num_heads", heads),
        query=Linear("q_proj", hidden, hidden),
        key=Linear("k_proj", hidden, hidden),
        value=Linear("v_proj", hidden, hidden),
        fused=None,
        output=Linear("out_proj", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_dropout", 0.0),
        recipe="gpt_neo",
    )
    width = reader.size("intermediate_size", default=4 * hidden)
    layer = Layer(
        norm,
        attention,
        norm,
        _mlp(reader, hidden, width, "c_fc", "c_proj"),
        dropout=reader.fraction("resid_dropout", 0.0),
        holds_attended=True,
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
        position_rows=positions,
        embedding_dropout=reader.fraction("embed_dropout", 0.0),
        rope_tables=0,
        max_positions=positions,
        # Each layer has a causal mask of all positions, one byte an entry.
        buffers=(positions * positions,) * count,
        attentions=("eager",),
        caches=("dynamic", "static", "quantized"),
        returns_probabilities=True,
    )


def _mlp(reader: ConfigReader, hidden: int, width: int, up: str, down: str) -> Mlp:
    return two_linears(hidden, width, up, down, reader.text("activation_function", "gelu_new"))
