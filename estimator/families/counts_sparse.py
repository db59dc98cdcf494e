"""Parameter counts of JetMoE: experts make the queries, too.

Source: transformers/models/jetmoe/{modeling,configuration}_jetmoe.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    embeddings,
    experts,
    layer_count,
)
from estimator.families.reader import ConfigReader


def count_jetmoe(reader: ConfigReader) -> int:
    """JetMoeForCausalLM: experts make the queries and the attention's output, too.

    Source: https://arxiv.org/abs/2404.07413, section 2.
    """
    hidden = reader.size("hidden_size", default=2048)
    count = reader.size("num_local_experts", default=8)
    features = reader.size("num_key_value_heads", default=16)
    features *= reader.size("kv_channels", "head_dim", default=128)
    width = reader.size("intermediate_size", default=5632)
    attention = count * (hidden + 2 * hidden * features) + hidden + 2 * hidden * features
    layer = attention + experts(hidden, width, count) + hidden + 2 * hidden
    outer = embeddings(reader, reader.size("vocab_size", default=32000), hidden, True)
    return outer + layer_count(reader, 12) * layer + hidden
