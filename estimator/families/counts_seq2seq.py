"""Parameter counts of decoders of sequence-to-sequence models as causal models: kin of BART.

Their layers keep the attention to an encoder, though none is there.

Source: transformers/models/{bigbird_pegasus,mvp,trocr,whisper}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.families.counts import linear
from estimator.families.reader import MAX_LAYERS, ConfigReader


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family differs, and what transformers takes for fields that are absent."""

    vocab: int
    hidden: int
    layers: int
    width: int
    positions: int
    offset: int = 0
    """Rows in front of the first position's."""
    embedding_norm: bool = False
    final_norm: bool = False
    key_bias: bool = True
    can_tie: bool = True


_FAMILIES = {
    "mvp": _Family(50267, 1024, 12, 4096, 1024, offset=2, embedding_norm=True),
    "bigbird_pegasus": _Family(96103, 1024, 16, 4096, 4096, embedding_norm=True, can_tie=False),
    "trocr": _Family(50265, 1024, 12, 4096, 512, offset=2, embedding_norm=True),
    "whisper": _Family(51865, 384, 4, 1536, 448, final_norm=True, key_bias=False),
}


def count_decoder(reader: ConfigReader) -> int:
    """Return the parameters of the decoder and its head."""
    family = _FAMILIES[reader.model_type]
    hidden = reader.size("d_model", default=family.hidden)
    vocab = reader.size("vocab_size", default=family.vocab)
    if reader.size("decoder_vocab_size", default=vocab) != vocab:
        raise reader.unsupported("a decoder_vocab_size other than vocab_size")
    bias = reader.flag("use_bias", False) if reader.model_type == "bigbird_pegasus" else True
    norm = 2 * hidden
    own = _attention(hidden, hidden, bias, bias and family.key_bias)
    source = hidden
    if reader.model_type == "trocr":
        source = reader.size("cross_attention_hidden_size", default=hidden)
    crossed = _attention(hidden, source, bias, bias and family.key_bias)
    width = reader.size("decoder_ffn_dim", default=family.width)
    mlp = linear(hidden, width, True) + linear(width, hidden, True)
    layers = reader.size("decoder_layers", default=family.layers, most=MAX_LAYERS)
    total = layers * (own + crossed + mlp + 3 * norm) + _positions(reader, family) * hidden
    if family.embedding_norm and reader.flag("layernorm_embedding", True):
        total += norm
    if family.final_norm:
        total += norm
    tied = family.can_tie and reader.flag("tie_word_embeddings", True)
    return total + vocab * hidden * (1 if tied else 2)


def _attention(hidden: int, source: int, bias: bool, key_bias: bool) -> int:
    keys = linear(source, hidden, key_bias) + linear(source, hidden, bias)
    return keys + 2 * linear(hidden, hidden, bias)


def _positions(reader: ConfigReader, family: _Family) -> int:
    """Return the rows of the table of positions; TrOCR's may be computed."""
    name = "max_target_positions" if reader.model_type == "whisper" else "max_position_embeddings"
    if not reader.flag("use_learned_position_embeddings", True):
        return 0
    return reader.size(name, default=family.positions) + family.offset
