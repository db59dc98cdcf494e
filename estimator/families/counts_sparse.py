"""Parameter counts of JetMoE, DeepSeek-V3.2 and GLM-5: experts, sparse attention.

Source: transformers/models/{jetmoe,deepseek_v32,glm_moe_dsa}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    check_length,
    embeddings,
    experts,
    gated_mlp,
    kinds,
    layer_count,
    linear,
)
from estimator.families.moe_shared import after_first, by_mlp_type
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


_V32 = {
    "hidden_size": 7168,
    "vocab_size": 129280,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_n_heads": 64,
}
_GLM5 = {
    "hidden_size": 6144,
    "vocab_size": 154880,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "intermediate_size": 12288,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "index_n_heads": 32,
}


def count_sparse_latent(reader: ConfigReader) -> int:
    """DeepseekV32ForCausalLM, GlmMoeDsaForCausalLM: latent attention that an indexer thins out.

    Source: DeepSeek-V3.2-Exp, section 2.1 (the lightning indexer).
    """
    defaults = _V32 if reader.model_type == "deepseek_v32" else _GLM5
    if reader.flag("attention_bias", False) or reader.flag("mlp_bias", False):
        raise reader.unsupported("biases")

    def size(name: str) -> int:
        return reader.size(name, default=defaults[name])

    hidden, heads, queries = size("hidden_size"), size("num_attention_heads"), size("q_lora_rank")
    rank = reader.size("kv_lora_rank", default=512)
    rope = reader.size("qk_rope_head_dim", default=64)
    nope, value = size("qk_nope_head_dim"), size("v_head_dim")
    attention = linear(hidden, queries) + queries + linear(queries, heads * (nope + rope))
    attention += linear(hidden, rank + rope) + rank + linear(rank, heads * (nope + value))
    attention += linear(heads * value, hidden)
    index = reader.size("index_head_dim", default=128)
    index_heads = size("index_n_heads")
    indexer = linear(queries, index_heads * index) + linear(hidden, index) + 2 * index
    indexer += linear(hidden, index_heads)
    width = reader.size("moe_intermediate_size", default=2048)
    shared = reader.size("n_shared_experts", default=1)
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    sparse = experts(hidden, width, reader.size(*names, default=256))
    sparse += gated_mlp(hidden, width * shared)
    dense = gated_mlp(hidden, size("intermediate_size"))
    count = layer_count(reader, defaults["num_hidden_layers"])
    mixed = by_mlp_type(reader, count, after_first(reader, count, 3)).count(True)
    outer = embeddings(reader, size("vocab_size"), hidden, False)
    layers = (
        count * (attention + 2 * hidden)
        + _indexers(reader, count) * indexer
        + mixed * sparse
        + (count - mixed) * dense
    )
    return outer + layers + hidden


def _indexers(reader: ConfigReader, count: int) -> int:
    """Return how many layers have an indexer of their own: GLM-5's may share another's."""
    if reader.model_type == "deepseek_v32":
        return count
    listed = kinds(reader, ("indexer_types",), ("full", "shared"))
    if listed:
        return check_length(reader, listed, count).count("full")
    for name in ("index_topk_pattern", "index_topk_freq"):
        if reader.config.get(name) not in (None, 1):
            raise reader.unsupported(name)
    return count
