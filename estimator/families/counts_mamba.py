"""Parameter counts of Mamba, Mamba 2 and Falcon Mamba.

Source: transformers/models/{mamba,mamba2,falcon_mamba}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from estimator.families.counts import (
    convolution,
    embeddings,
    layer_count,
    linear,
    time_step_rank,
)
from estimator.families.reader import ConfigReader


def mamba_mixer(
    hidden: int, inner: int, state: int, rank: int, kernel: int, bias: bool, conv_bias: bool
) -> int:
    """Return the elements of a selective state space's mixer (S6).

    Source: https://arxiv.org/abs/2312.00752, section 3.4.

    Args:
        inner: features inside, `expand` times the hidden size.
        state: features of each channel's state.
        rank: that of the time steps' projection.
        bias: of the projections in and out.
    """
    projections = linear(hidden, 2 * inner, bias) + linear(inner, hidden, bias)
    steps = linear(inner, rank + 2 * state) + linear(rank, inner, True)
    return projections + steps + convolution(inner, kernel, conv_bias) + inner * state + inner


def mamba2_mixer(
    hidden: int,
    inner: int,
    state: int,
    heads: int,
    groups: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    normed: bool = True,
    output_bias: bool | None = None,
) -> int:
    """Return the elements of a Mamba 2 mixer (state space duality).

    Source: https://arxiv.org/abs/2405.21060, section 7.

    Args:
        normed: whether a gated norm stands before the output's projection.
        output_bias: of the output's projection; None for `bias`, which is of the input's.
    """
    channels = inner + 2 * groups * state
    projection = linear(hidden, inner + channels + heads, bias)
    output = linear(inner, hidden, bias if output_bias is None else output_bias)
    norm = inner if normed else 0
    return projection + convolution(channels, kernel, conv_bias) + 3 * heads + norm + output


def count_mamba(reader: ConfigReader) -> int:
    """MambaForCausalLM, FalconMambaForCausalLM (whose inner norms have no weights)."""
    hidden = reader.size("hidden_size", default=768)
    expanded = reader.size("expand", default=2) * hidden
    mixer = mamba_mixer(
        hidden,
        # transformers lets intermediate_size overrule the product (falcon-mamba-7b).
        inner=reader.size("intermediate_size", default=expanded),
        state=reader.size("state_size", default=16),
        rank=time_step_rank(reader, "time_step_rank", hidden),
        kernel=reader.size("conv_kernel", default=4),
        bias=reader.flag("use_bias", False),
        conv_bias=reader.flag("use_conv_bias", True),
    )
    outer = embeddings(reader, reader.size("vocab_size", default=50280), hidden, True)
    return outer + layer_count(reader, 32) * (mixer + hidden) + hidden


def count_mamba2(reader: ConfigReader) -> int:
    """Mamba2ForCausalLM."""
    hidden = reader.size("hidden_size", default=4096)
    inner = reader.size("expand", default=2) * hidden
    heads = reader.size("num_heads", default=128)
    reader.divided("expand times hidden_size", inner, "num_heads", heads)
    mixer = mamba2_mixer(
        hidden,
        inner=inner,
        state=reader.size("state_size", default=128),
        heads=heads,
        groups=reader.size("n_groups", default=8),
        kernel=reader.size("conv_kernel", default=4),
        bias=reader.flag("use_bias", False),
        conv_bias=reader.flag("use_conv_bias", True),
    )
    outer = embeddings(reader, reader.size("vocab_size", default=32768), hidden, False)
    return outer + layer_count(reader, 64) * (mixer + hidden) + hidden
