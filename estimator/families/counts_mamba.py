"""Parameter counts of the mixers of Mamba and Mamba 2.

Source: transformers/models/{mamba,mamba2}/modeling_*.py.
"""

from __future__ import annotations

from estimator.families.counts import convolution, linear


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
