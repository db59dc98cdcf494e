"""Parameter counts of Zamba and Zamba 2: Mamba layers, and attention blocks that layers share.

Source: transformers/models/{zamba,zamba2}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    check_length,
    embeddings,
    gated_mlp,
    kinds,
    layer_count,
    linear,
    time_step_rank,
)
from estimator.families.counts_mamba import mamba2_mixer, mamba_mixer
from estimator.families.reader import ConfigReader

_KINDS = ("linear_attention", "hybrid")
_NAMES = ("layers_block_type", "layer_types")


def count_zamba(reader: ConfigReader) -> int:
    """ZambaForCausalLM: one attention block for all hybrid layers, which have a linear each."""
    hidden = reader.size("hidden_size", default=3712)
    count = layer_count(reader, 76)
    listed = kinds(reader, _NAMES, _KINDS)
    if listed:
        hybrids = check_length(reader, listed, count).count("hybrid")
    else:
        period = reader.size("attn_layer_period", default=6)
        offset = reader.count("attn_layer_offset", 4)
        hybrids = 1 + sum(index % period == offset for index in range(count - 3))
    mixer = mamba_mixer(
        hidden,
        inner=reader.size("mamba_expand", default=2) * hidden,
        state=reader.size("mamba_d_state", default=16),
        rank=time_step_rank(reader, "mamba_dt_rank", hidden),
        kernel=reader.size("mamba_d_conv", default=4),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
    heads, kv_heads = reader.heads(16 if "num_key_value_heads" not in reader.config else None, 16)
    inputs = reader.size("attention_hidden_size", default=2 * hidden)
    d = reader.size("attention_head_dim", "head_dim", default=2 * hidden // heads)
    attention = linear(inputs, (heads + 2 * kv_heads) * d) + linear(heads * d, hidden)
    mlp = gated_mlp(hidden, reader.size("intermediate_size", default=14848))
    shared = attention + mlp + inputs + hidden if hybrids else 0
    outer = embeddings(reader, reader.size("vocab_size", default=32000), hidden, True)
    layers = count * (mixer + hidden) + hybrids * linear(hidden, hidden)
    return outer + layers + shared + hidden


def count_zamba2(reader: ConfigReader) -> int:
    """Zamba2ForCausalLM: `num_mem_blocks` shared blocks, with an adapter for each hybrid layer."""
    hidden = reader.size("hidden_size", default=2560)
    # transformers takes the number of layers from this list alone.
    listed = kinds(reader, _NAMES, _KINDS) or _zamba2_kinds()
    hybrids = listed.count("hybrid")
    bias = reader.flag("add_bias_linear", False)
    mixer = mamba2_mixer(
        hidden,
        inner=reader.size("mamba_expand", default=2) * hidden,
        state=reader.size("mamba_d_state", default=64),
        heads=reader.size("n_mamba_heads", default=8),
        groups=reader.size("mamba_ngroups", default=1),
        kernel=reader.size("mamba_d_conv", default=4),
        bias=bias,
        conv_bias=True,
    )
    heads, kv_heads = reader.heads(None, 32)
    d = reader.divided("twice hidden_size", 2 * hidden, "num_attention_heads", heads)
    width = reader.size("intermediate_size", default=4 * hidden)
    attention = linear(2 * hidden, (heads + 2 * kv_heads) * d) + linear(heads * d, hidden)
    mlp = linear(hidden, 2 * width, bias) + linear(width, hidden, bias)
    blocks = min(hybrids, reader.size("num_mem_blocks", default=1))
    rank = reader.size("adapter_rank", default=128)
    adapters = linear(hidden, rank) + linear(rank, 2 * width)
    if reader.flag("use_shared_attention_adapter", False):
        adapters += 3 * (linear(2 * hidden, rank) + linear(rank, 2 * hidden))
    outer = embeddings(reader, reader.size("vocab_size", default=32000), hidden, True)
    layers = len(listed) * (mixer + hidden) + hybrids * (linear(hidden, hidden) + adapters)
    return outer + layers + blocks * (attention + mlp + 3 * hidden) + hidden


def _zamba2_kinds() -> list[str]:
    gaps = (6, *(5,) * 6, 4, 3)
    listed: list[str] = []
    for gap in gaps:
        listed += ["linear_attention"] * gap + ["hybrid"]
    return listed + ["linear_attention"] * 2
