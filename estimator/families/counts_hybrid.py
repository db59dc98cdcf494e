"""Parameter counts of models of Mamba layers beside attention.

Source: transformers/models/{jamba,bamba,falcon_h1,granitemoehybrid,nemotron_h}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    check_length,
    embeddings,
    experts,
    gated_mlp,
    grouped_attention,
    kinds,
    layer_count,
    linear,
    time_step_rank,
)
from estimator.families.counts_mamba import mamba2_mixer, mamba_mixer
from estimator.families.reader import ConfigReader


def count_jamba(reader: ConfigReader) -> int:
    """JambaForCausalLM: Mamba with norms on steps and states; experts in every other layer."""
    hidden = reader.size("hidden_size", default=4096)
    width = reader.size("intermediate_size", default=14336)
    state = reader.size("mamba_d_state", default=16)
    rank = time_step_rank(reader, "mamba_dt_rank", hidden)
    mixer = mamba_mixer(
        hidden,
        inner=reader.size("mamba_expand", default=2) * hidden,
        state=state,
        rank=rank,
        kernel=reader.size("mamba_d_conv", default=4),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
    mixer += rank + 2 * state
    attention = grouped_attention(reader, hidden, False, kv_heads=8)
    count = reader.size("num_experts", default=16)
    dense = gated_mlp(hidden, width)
    sparse = experts(hidden, width, count) if count > 1 else dense
    total = hidden + embeddings(reader, reader.size("vocab_size", default=65536), hidden, False)
    attends = _periodic(reader, "attn", 8, 4)
    mixes = _periodic(reader, "expert", 2, 1)
    for index in range(layer_count(reader, 32)):
        total += attention if index % attends[0] == attends[1] else mixer
        total += sparse if index % mixes[0] == mixes[1] else dense
        total += 2 * hidden
    return total


def _periodic(reader: ConfigReader, name: str, period: int, offset: int) -> tuple[int, int]:
    return (
        reader.size(f"{name}_layer_period", default=period),
        reader.count(f"{name}_layer_offset", offset),
    )


def _shared_names_mixer(reader: ConfigReader, hidden: int) -> int:
    """Return the Mamba 2 mixer of Bamba and its kin, who share the fields' names."""
    inner = reader.size("mamba_expand", default=2) * hidden
    heads = reader.size("mamba_n_heads", default=128)
    reader.divided("mamba_expand times hidden_size", inner, "mamba_n_heads", heads)
    return mamba2_mixer(
        hidden,
        inner=inner,
        state=reader.size("mamba_d_state", default=256),
        heads=heads,
        groups=reader.size("mamba_n_groups", default=1),
        kernel=reader.size("mamba_d_conv", default=4),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
    )


def count_bamba(reader: ConfigReader) -> int:
    """BambaForCausalLM: attention in the layers of `attn_layer_indices`, dense MLPs."""
    hidden = reader.size("hidden_size", default=4096)
    count = layer_count(reader, 32)
    attention = grouped_attention(reader, hidden, reader.flag("attention_bias", False), kv_heads=8)
    mixer = _shared_names_mixer(reader, hidden)
    width = reader.size("intermediate_size", default=14336)
    around = gated_mlp(hidden, width, reader.flag("mlp_bias", False)) + 2 * hidden
    attends = sum(index in reader.indices("attn_layer_indices") for index in range(count))
    layers = attends * attention + (count - attends) * mixer + count * around
    outer = embeddings(reader, reader.size("vocab_size", default=128000), hidden, False)
    return outer + layers + hidden


def count_falcon_h1(reader: ConfigReader) -> int:
    """FalconH1ForCausalLM: attention and a Mamba 2 mixer side by side in each layer."""
    hidden = reader.size("hidden_size", default=4096)
    inner = 1024
    if "mamba_d_ssm" in reader.config:
        expanded = reader.size("mamba_expand", default=2) * hidden
        inner = reader.size("mamba_d_ssm", default=expanded)
    heads = reader.size("mamba_n_heads", default=128)
    reader.divided("mamba_d_ssm", inner, "mamba_n_heads", heads)
    mixer = mamba2_mixer(
        hidden,
        inner=inner,
        state=reader.size("mamba_d_state", default=256),
        heads=heads,
        groups=reader.size("mamba_n_groups", default=1),
        kernel=reader.size("mamba_d_conv", default=4),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
        normed=reader.flag("mamba_rms_norm", False),
        output_bias=reader.flag("projectors_bias", False),
    )
    attention = grouped_attention(reader, hidden, reader.flag("attention_bias", False), kv_heads=8)
    width = reader.size("intermediate_size", default=14336)
    mlp = gated_mlp(hidden, width, reader.flag("mlp_bias", False))
    outer = embeddings(reader, reader.size("vocab_size", default=128000), hidden, False)
    return outer + layer_count(reader, 32) * (attention + mixer + mlp + 2 * hidden) + hidden


def count_granitemoehybrid(reader: ConfigReader) -> int:
    """GraniteMoeHybridForCausalLM: a shared MLP in each layer, and experts where there are any."""
    hidden = reader.size("hidden_size", default=4096)
    count = layer_count(reader, 32)
    known = ("linear_attention", "full_attention")
    listed = kinds(reader, ("layer_types", "layers_block_type"), known)
    attends = check_length(reader, listed, count).count("full_attention") if listed else 0
    around = gated_mlp(hidden, reader.size("shared_intermediate_size", default=1024)) + 2 * hidden
    expert_count = reader.count("num_local_experts", 8)
    if expert_count:
        width = reader.size("intermediate_size", default=11008)
        around += experts(hidden, width, expert_count)
    layers = count * around
    if attends:
        bias = reader.flag("attention_bias", False)
        layers += attends * grouped_attention(reader, hidden, bias)
    if attends < count:
        layers += (count - attends) * _shared_names_mixer(reader, hidden)
    outer = embeddings(reader, reader.size("vocab_size", default=32000), hidden, False)
    return outer + layers + hidden


_NEMOTRON_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def count_nemotron_h(reader: ConfigReader) -> int:
    """NemotronHForCausalLM: each layer is one norm and one of four blocks."""
    hidden = reader.size("hidden_size", default=4096)
    heads = reader.size("mamba_num_heads", default=128)
    blocks = {
        "linear_attention": lambda: mamba2_mixer(
            hidden,
            inner=heads * reader.size("mamba_head_dim", default=64),
            state=reader.size("ssm_state_size", default=128),
            heads=heads,
            groups=reader.size("mamba_n_groups", "n_groups", default=8),
            kernel=reader.size("mamba_d_conv", "conv_kernel", default=4),
            bias=reader.flag("use_bias", False),
            conv_bias=reader.flag("use_conv_bias", True),
        ),
        "full_attention": lambda: _nemotron_attention(reader, hidden),
        "mlp": lambda: _nemotron_mlp(
            reader, hidden, reader.size("intermediate_size", default=21504)
        ),
        "moe": lambda: _nemotron_experts(reader, hidden),
    }
    listed = _nemotron_kinds(reader)
    total = hidden + embeddings(reader, reader.size("vocab_size", default=131072), hidden, False)
    for kind in sorted(set(listed)):
        total += listed.count(kind) * (hidden + blocks[kind]())
    return total


def _nemotron_kinds(reader: ConfigReader) -> list[str]:
    pattern = reader.config.get("hybrid_override_pattern")
    if pattern is not None:
        known = isinstance(pattern, str) and pattern and set(pattern) <= set(_NEMOTRON_LETTERS)
        if not known:
            raise reader.error("hybrid_override_pattern", pattern, "letters out of M, E, * and -")
        return [_NEMOTRON_LETTERS[letter] for letter in pattern]
    known_kinds = tuple(_NEMOTRON_LETTERS.values())
    listed = kinds(reader, ("layers_block_type", "layer_types"), known_kinds)
    return listed or ["linear_attention", "moe", "full_attention", "mlp"]


def _nemotron_attention(reader: ConfigReader, hidden: int) -> int:
    heads, kv_heads = reader.heads(8 if "num_key_value_heads" not in reader.config else None, 32)
    d = reader.size("head_dim", default=128)
    return 2 * linear(hidden, heads * d) + 2 * linear(hidden, kv_heads * d)


def _nemotron_mlp(reader: ConfigReader, hidden: int, width: int) -> int:
    bias = reader.flag("mlp_bias", False)
    return linear(hidden, width, bias) + linear(width, hidden, bias)


def _nemotron_experts(reader: ConfigReader, hidden: int) -> int:
    """Experts without gates, of a latent where `moe_latent_size` is set, and a shared one."""
    count = reader.size("n_routed_experts", "num_local_experts", default=8)
    latent = reader.optional_size("moe_latent_size")
    features = latent or hidden
    width = reader.size("moe_intermediate_size", default=7688)
    total = count * hidden + 2 * count * features * width
    if latent is not None:
        total += _nemotron_mlp(reader, hidden, latent)
    shared = reader.size("moe_shared_expert_intermediate_size", default=7688)
    return total + _nemotron_mlp(reader, hidden, shared)
