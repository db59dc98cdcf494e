"""Parameter counts of older decoders: GPT, GPT-NeoX Japanese, and kin of BERT with other norms.

Source: transformers/models/{openai,gpt_neox_japanese,megatron_bert,electra,
rembert}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.families.counts import embeddings, layer_count, linear
from estimator.families.reader import ConfigReader


def count_openai_gpt(reader: ConfigReader) -> int:
    """OpenAIGPTLMHeadModel: GPT-2's parts without a last norm; the MLP is always 4 times wider."""
    hidden = reader.size("n_embd", "hidden_size", default=768)
    heads = reader.size("n_head", "num_attention_heads", default=12)
    reader.divided("n_embd", hidden, "n_head", heads)
    positions = reader.size("n_positions", "max_position_embeddings", default=512)
    attention = linear(hidden, 3 * hidden, True) + linear(hidden, hidden, True)
    layer = attention + _plain_mlp(hidden, 4 * hidden) + 4 * hidden
    outer = embeddings(reader, reader.size("vocab_size", default=40478), hidden, True)
    count = reader.size("n_layer", "num_hidden_layers", default=12)
    return outer + positions * hidden + count * layer


def count_gpt_neox_japanese(reader: ConfigReader) -> int:
    """GPTNeoXJapaneseForCausalLM: no biases but that of the last layer's attention."""
    hidden = reader.size("hidden_size", default=2560)
    heads = reader.size("num_attention_heads", default=32)
    reader.divided("hidden_size", hidden, "num_attention_heads", heads)
    width = hidden * reader.size("intermediate_multiple_size", default=4)
    layer = 4 * hidden * hidden + 2 * hidden * width + 4 * hidden
    outer = embeddings(reader, reader.size("vocab_size", default=32000), hidden, True)
    return outer + layer_count(reader, 32) * layer + hidden + 2 * hidden


@dataclass(frozen=True, slots=True)
class _Bert:
    """How a kin of BERT differs, and what transformers takes for fields that are absent."""

    vocab: int
    hidden: int
    layers: int
    width: int
    token_types: int = 2
    positions: int = 512
    heads: int = 12
    embedding_norm: bool = True
    final_norm: bool = False
    narrow: int | None = None
    """Default features of embeddings that a linear brings to the hidden size."""


_BERTS = {
    "megatron-bert": _Bert(29056, 1024, 24, 4096, heads=16, embedding_norm=False, final_norm=True),
    "electra": _Bert(30522, 256, 12, 1024, heads=4, narrow=128),
    "rembert": _Bert(250300, 1152, 32, 4608, heads=18, narrow=256),
}


def count_bert(reader: ConfigReader) -> int:
    """Return the parameters of the layers and of a head with a transform and a bias."""
    family = _BERTS[reader.model_type]
    if reader.flag("add_cross_attention", False):
        raise reader.unsupported("add_cross_attention")
    hidden = reader.size("hidden_size", default=family.hidden)
    heads = reader.size("num_attention_heads", default=family.heads)
    reader.divided("hidden_size", hidden, "num_attention_heads", heads)
    vocab = reader.size("vocab_size", default=family.vocab)
    narrow = hidden
    if family.narrow is not None:
        name = "input_embedding_size" if reader.model_type == "rembert" else "embedding_size"
        narrow = reader.size(name, default=family.narrow)
    width = reader.size("intermediate_size", default=family.width)
    layer = 4 * linear(hidden, hidden, True) + _plain_mlp(hidden, width) + 4 * hidden
    rows = reader.size("max_position_embeddings", default=family.positions)
    rows += reader.size("type_vocab_size", default=family.token_types)
    total = vocab * narrow + rows * narrow + layer_count(reader, family.layers) * layer
    total += 2 * narrow if family.embedding_norm else 0
    total += 2 * hidden if family.final_norm else 0
    if family.narrow is not None and (narrow != hidden or reader.model_type == "rembert"):
        total += linear(narrow, hidden, True)
    return total + _bert_head(reader, hidden, narrow, vocab)


def _bert_head(reader: ConfigReader, hidden: int, narrow: int, vocab: int) -> int:
    """A transform, a norm, and the projection's bias; RemBERT's projection is never tied."""
    if reader.model_type == "rembert":
        out = reader.size("output_embedding_size", default=1664)
        return linear(hidden, out, True) + 2 * out + linear(out, vocab, True)
    tied = reader.flag("tie_word_embeddings", True)
    transform = linear(hidden, narrow, True) + 2 * narrow
    if tied:
        return transform + vocab
    # Untied, the projection has a bias beside the head's, but for ELECTRA's.
    return transform + vocab * narrow + vocab * (1 if reader.model_type == "electra" else 2)


def _plain_mlp(hidden: int, width: int) -> int:
    return linear(hidden, width, True) + linear(width, hidden, True)
