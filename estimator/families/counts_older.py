"""Parameter counts of older decoders: GPT and GPT-NeoX Japanese.

Source: transformers/models/{openai,gpt_neox_japanese}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

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


def _plain_mlp(hidden: int, width: int) -> int:
    return linear(hidden, width, True) + linear(width, hidden, True)
