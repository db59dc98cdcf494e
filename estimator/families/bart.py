"""BART and its kin as causal models: a decoder whose attention to an encoder stays idle.

Source: transformers/models/{bart,mbart,plbart,blenderbot,
blenderbot_small,pegasus,marian}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family differs, and what transformers takes for fields that are absent."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    width: int
    positions: int
    encoder_layers: int = 12
    offset: int = 2
    """Rows in front of the first position's."""
    norm_first: bool = False
    """Whether norms stand before the blocks, and one behind the last layer."""
    embedding_norm: bool = True
    attention_dropout: float = 0.0
    sinusoidal: bool = False
    """Whether positions are computed, in a parameter that never trains."""
    norm_before_positions: bool = False


_FAMILIES = {
    "bart": _Family(50265, 1024, 12, 16, 4096, 1024),
    "mbart": _Family(50265, 1024, 12, 16, 4096, 1024, norm_first=True),
    "plbart": _Family(50005, 768, 6, 12, 3072, 1024, encoder_layers=6, attention_dropout=0.1),
    "blenderbot": _Family(
        vocab=8008,
        hidden=2560,
        layers=24,
        heads=32,
        width=10240,
        positions=128,
        encoder_layers=2,
        offset=0,
        norm_first=True,
        embedding_norm=False,
    ),
    "blenderbot-small": _Family(50265, 512, 8, 16, 2048, 512, offset=0, norm_before_positions=True),
    "pegasus": _Family(
        50265,
        1024,
        12,
        16,
        4096,
        1024,
        offset=0,
        norm_first=True,
        embedding_norm=False,
        sinusoidal=True,
    ),
    "marian": _Family(
        58101, 1024, 12, 16, 4096, 1024, offset=0, embedding_norm=False, sinusoidal=True
    ),
}


def parse(reader: ConfigReader) -> ModelSpec:
    """BartForCausalLM and its kin."""
    family = _FAMILIES[reader.model_type]
    hidden = reader.size("d_model", default=family.hidden)
    vocab = reader.size("vocab_size", default=family.vocab)
    if reader.size("decoder_vocab_size", default=vocab) != vocab:
        raise reader.unsupported("a decoder_vocab_size other than vocab_size")
    if reader.fraction("decoder_layerdrop", 0.0):
        raise reader.unsupported("decoder_layerdrop")
    dropout = reader.fraction("dropout", 0.1)
    norm = Norm("layer", hidden)
    attention = _attention(reader, hidden, family)
    width = reader.size("decoder_ffn_dim", default=family.width)
    mlp = replace(
        two_linears(hidden, width, "fc1", "fc2", reader.text("activation_function", "gelu")),
        inner_dropout=reader.fraction("activation_dropout", 0.0),
    )
    idle: tuple[Linear | Norm, ...] = (*attention.linears, norm)
    if family.norm_first:
        layer = Layer(
            norm, attention, norm, mlp, dropout=dropout, idle=idle, recipe="inlined_nested"
        )
    else:
        layer = Layer(
            None,
            attention,
            None,
            mlp,
            dropout=dropout,
            attention_out_norm=norm,
            mlp_out_norm=norm,
            idle=idle,
            recipe="inlined_post_norm",
        )
    positions = reader.size("max_position_embeddings", default=family.positions)
    count = reader.size("decoder_layers", default=family.layers, most=MAX_LAYERS)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm if family.norm_first else None,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", True),
        position_rows=positions + family.offset,
        position_ids=False,
        position_offset=bool(family.offset),
        positions_frozen=family.sinusoidal,
        embedding_norm_first=family.norm_before_positions,
        embedding_scaled=True,
        embedding_norm=norm if family.embedding_norm else None,
        embedding_dropout=dropout,
        rope_tables=0,
        max_positions=positions,
        plain_loss=True,
        # `num_hidden_layers` is another name for the encoder's.
        cache_layers=reader.size("encoder_layers", default=family.encoder_layers, most=MAX_LAYERS),
    )


def _attention(reader: ConfigReader, hidden: int, family: _Family) -> Attention:
    heads = reader.size("decoder_attention_heads", default=family.heads)
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("d_model", hidden, "decoder_attention_heads", heads),
        query=Linear("q_proj", hidden, hidden, True),
        key=Linear("k_proj", hidden, hidden, True),
        value=Linear("v_proj", hidden, hidden, True),
        fused=None,
        output=Linear("out_proj", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_dropout", family.attention_dropout),
        eager="plain",
    )
