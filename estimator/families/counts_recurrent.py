"""Parameter counts of recurrent models and of short convolutions beside attention.

Source: transformers/models/{rwkv,recurrent_gemma,xlstm,lfm2,lfm2_moe}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    embeddings,
    factor,
    gated_mlp,
    layer_count,
    linear,
)
from estimator.families.reader import ConfigReader


def count_rwkv(reader: ConfigReader) -> int:
    """RwkvForCausalLM (version 4): one more norm in front of the first layer.

    Source: https://arxiv.org/abs/2305.13048.
    """
    hidden = reader.size("hidden_size", default=4096)
    inner = reader.size("attention_hidden_size", default=hidden)
    width = reader.size("intermediate_size", default=4 * hidden)
    time = 2 * inner + 3 * hidden + 4 * hidden * inner
    channel = 2 * hidden + 2 * hidden * width + hidden * hidden
    norms = 4 * hidden
    outer = embeddings(reader, reader.size("vocab_size", default=50277), hidden, False)
    return outer + layer_count(reader, 32) * (time + channel + norms) + 4 * hidden


def count_xlstm(reader: ConfigReader) -> int:
    """xLSTMForCausalLM: matrix memories and a gated MLP in each layer.

    Source: https://arxiv.org/abs/2503.13427.
    """
    hidden = reader.size("hidden_size", "embedding_dim", default=4096)
    heads = reader.size("num_heads", default=8)
    bias = reader.flag("use_bias", False)
    keys = int(hidden * factor(reader, "qk_dim_factor", 0.5))
    values = int(hidden * factor(reader, "v_dim_factor", 1.0))
    step = reader.size("ffn_round_up_to_multiple_of", default=64)
    width = _multiple(hidden * factor(reader, "ffn_proj_factor", 2.667), step)
    norm = 2 * hidden if bias else hidden
    memory = 2 * (linear(hidden, keys, bias) + linear(hidden, values, bias))
    memory += 2 * linear(hidden, heads, True) + linear(values, hidden, bias)
    normed = values // heads * heads
    memory += 2 * normed if bias else normed
    layer = memory + gated_mlp(hidden, width, bias) + 2 * norm
    outer = embeddings(reader, reader.size("vocab_size", default=50304), hidden, False)
    count = reader.size("num_hidden_layers", "num_blocks", default=32)
    return outer + count * layer + hidden


def _multiple(size: float, step: int) -> int:
    """Round up as xLSTM's code does: of a size that need not be whole."""
    return int((size + step - 1) // step) * step
