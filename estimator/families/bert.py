"""BERT and its kin as decoders: post-norm layers, token types, a transform before the head.

Source: transformers/models/{bert,roberta,xlm_roberta,camembert,data2vec,ernie,bert_generation}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, HeadTransform, Layer, Linear, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """BertLMHeadModel, ErnieForCausalLM: positions as they come."""
    if reader.flag("use_task_id", False):
        raise reader.unsupported("use_task_id")
    return _parse(reader, counted=False)


def parse_roberta(reader: ConfigReader) -> ModelSpec:
    """RobertaForCausalLM and its copies: positions are counted from the tokens in training."""
    return _parse(reader, counted=True)


def parse_generation(reader: ConfigReader) -> ModelSpec:
    """BertGenerationDecoder: no token types, and a head without a transform."""
    return _parse(reader, counted=False, plain=True)


def _parse(reader: ConfigReader, counted: bool, plain: bool = False) -> ModelSpec:
    hidden = reader.size("hidden_size", default=1024 if plain else 768)
    heads = reader.size("num_attention_heads", default=16 if plain else 12)
    count = reader.size("num_hidden_layers", default=24 if plain else 12, most=MAX_LAYERS)
    width = reader.size("intermediate_size", default=4096 if plain else 3072)
    # RobertaConfig's default differs from that of the others.
    known = {"bert-generation": 50358, "roberta": 50265}
    vocab = reader.size("vocab_size", default=known.get(reader.model_type, 30522))
    if reader.flag("add_cross_attention", False):
        raise reader.unsupported("add_cross_attention")
    if not reader.flag("tie_word_embeddings", True):
        # The head then has a second bias, which no checkpoint of these has.
        raise reader.unsupported("an untied head")
    norm = Norm("layer", hidden)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("hidden_size", hidden, "num_attention_heads", heads),
        query=Linear("query", hidden, hidden, True),
        key=Linear("key", hidden, hidden, True),
        value=Linear("value", hidden, hidden, True),
        fused=None,
        output=Linear("dense", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_probs_dropout_prob", 0.1),
        eager="plain",
    )
    act = reader.text("hidden_act", "gelu")
    mlp = two_linears(hidden, width, "dense", "dense", act)
    dropout = reader.fraction("hidden_dropout_prob", 0.1)
    layer = Layer(
        None,
        attention,
        None,
        mlp,
        dropout=dropout,
        attention_out_norm=norm,
        mlp_out_norm=norm,
        recipe="post_norm",
    )
    positions = reader.size("max_position_embeddings", default=512)
    transform = HeadTransform(
        Linear("dense", hidden, hidden, True), "gelu" if counted else act, norm
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=None,
        head=Linear("decoder", hidden, vocab, True),
        tied=True,
        head_transform=None if plain else transform,
        position_rows=positions,
        positions_counted=counted,
        token_types=0 if plain else reader.size("type_vocab_size", default=2),
        embedding_norm=norm,
        embedding_dropout=dropout,
        embedding_named=False,
        rope_tables=0,
        max_positions=positions,
        # Positions and token types of all positions, int64.
        buffers=(8 * positions,) * (1 if plain else 2),
        mask_style="additive" if reader.flag("is_decoder", False) else "none",
    )
