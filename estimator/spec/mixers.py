"""What mixes tokens without keys and values: delta nets and short convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from estimator.spec.linears import Linear, Norm


@dataclass(frozen=True, slots=True)
class State:
    """A tensor of the cache: elements of each sequence, in the model's dtype unless in fp32."""

    count: int
    fp32: bool = False


class Mixer(Protocol):
    """What stands in attention's place, in front of the output's projection."""

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """Its projections in the order in which they run."""

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its norms."""

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's or norm's."""

    @property
    def states(self) -> tuple[State, ...]:
        """What a cache keeps, however long the sequence."""


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """A gated delta net in attention's place: a recurrent state instead of keys and values.

    `inputs` are its projections: of queries, keys, values and the gate side by side and of the
    betas and decays (`ordered`, Qwen3-Next), or one each (Qwen 3.5).

    Source: https://arxiv.org/abs/2412.06464.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    inputs: tuple[Linear, ...]
    norm: Norm
    ordered: bool = False

    @property
    def channels(self) -> int:
        """Features that the convolution sees: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norm of its output, which a gate multiplies."""
        return (self.norm,)

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of a bias and a rate of each head's decay, and of the convolution."""
        return self.value_heads, self.value_heads, self.channels * self.kernel

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of its convolution, and a matrix a head in fp32."""
        matrices = self.value_heads * self.key_dim * self.value_dim
        return State(self.channels * self.kernel), State(matrices, fp32=True)


@dataclass(frozen=True, slots=True)
class ShortConv:
    """A convolution of few tokens between two gates, all three made by one projection.

    Source: transformers/models/lfm2/modeling_lfm2.py, `Lfm2ShortConv`.
    """

    channels: int
    kernel: int
    projection: Linear
    bias: bool = False

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """The projection."""
        return (self.projection,)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """None."""
        return ()

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of the convolution's weight and bias."""
        weight = self.channels * self.kernel
        return (weight, self.channels) if self.bias else (weight,)

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of the convolution."""
        return (State(self.channels * self.kernel),)


@dataclass(frozen=True, slots=True)
class SelectiveScan:
    """Mamba's selective state space (S6): a state of `state` features for each channel.

    `inputs` are its projections: of channels and their gates, of what selects (time steps, and
    the state's inputs and outputs), and of the time steps to all channels.

    Source: https://arxiv.org/abs/2312.00752, section 3.4.
    """

    channels: int
    state: int
    rank: int
    kernel: int
    inputs: tuple[Linear, Linear, Linear]
    conv_bias: bool
    masked: bool = False
    """Whether the mask of padded tokens is multiplied in, though there are none."""
    selection_norms: tuple[Norm, ...] = ()
    """Norms of time steps, inputs and outputs of the state (Jamba)."""

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of what selects."""
        return self.selection_norms

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of the rates, of the channels' shares of the input, and of the convolution."""
        conv = (self.channels * self.kernel, *((self.channels,) if self.conv_bias else ()))
        return self.channels * self.state, self.channels, *conv

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of the convolution, and each channel's state in fp32."""
        return State(self.channels * self.kernel), State(self.channels * self.state, fp32=True)


@dataclass(frozen=True, slots=True)
class HeadScan:
    """A selective state space in `heads` of equal channels, each with weights of its own that
    select, which are no linears (Zamba).

    Source: https://arxiv.org/abs/2405.16712.
    """

    channels: int
    heads: int
    state: int
    rank: int
    kernel: int
    projection: Linear
    conv_bias: bool

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """The projection of channels and their gates."""
        return (self.projection,)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """None."""
        return ()

    @property
    def selection_count(self) -> int:
        """Elements of the weights that make time steps, inputs and outputs of the state."""
        return (self.rank + 2 * self.state) * self.channels

    @property
    def steps_count(self) -> int:
        """Elements of the weights that bring time steps to all channels."""
        return self.rank * self.channels

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of the weights of all heads, the steps' bias, the rates, the channels' shares
        of the input, and the convolution."""
        conv = (self.channels * self.kernel, *((self.channels,) if self.conv_bias else ()))
        weights = self.selection_count, self.steps_count
        return (*weights, self.channels, self.rates, self.channels, *conv)

    @property
    def rates(self) -> int:
        """Elements of the rates, which stay in fp32."""
        return self.channels * self.state

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of the convolution, and each channel's state in fp32."""
        return State(self.channels * self.kernel), State(self.channels * self.state, fp32=True)

    @property
    def head(self) -> SelectiveScan:
        """One head, as a scan by itself; its linears are not used."""
        return SelectiveScan(
            channels=self.channels // self.heads,
            state=self.state,
            rank=self.rank,
            kernel=self.kernel,
            inputs=(self.projection,) * 3,
            conv_bias=self.conv_bias,
        )


@dataclass(frozen=True, slots=True)
class LinearRecurrence:
    """A gated linear recurrence (RG-LRU) behind a convolution, beside a gate (Griffin).

    `inputs` are the projections of the gate and of what the convolution sees; the recurrence's own
    gates are block by block, one a head.

    Source: https://arxiv.org/abs/2402.19427, section 2.4.
    """

    width: int
    heads: int
    kernel: int
    inputs: tuple[Linear, Linear]
    activation: str

    @property
    def norms(self) -> tuple[Norm, ...]:
        """None."""
        return ()

    @property
    def gate_count(self) -> int:
        """Elements of all blocks of a gate's weight."""
        return self.width * self.width // self.heads

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of the decays' parameter, of both gates, and of the convolution."""
        gates = (self.gate_count, self.width) * 2
        return (self.width, *gates, self.width * self.kernel, self.width)

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of the convolution, and the recurrence's state in fp32."""
        return State(self.width * (self.kernel - 1)), State(self.width, fp32=True)


@dataclass(frozen=True, slots=True)
class StateSpaceDual:
    """Mamba 2's state space: a matrix of `head_dim` by `state` features for each head.

    `projection` makes gates, channels with the state's inputs and outputs, and time steps, side
    by side. The sequence is computed in chunks of `chunk` tokens.

    Source: https://arxiv.org/abs/2405.21060, section 7.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    chunk: int
    projection: Linear
    norm: Norm | None
    conv_bias: bool
    masked: bool = False
    """Whether the mask of padded tokens is multiplied in, though there are none."""
    scaled: bool = False
    """Whether what goes into the projection is multiplied by a number, and what comes out by a
    vector, which is a buffer (Falcon-H1)."""
    gate: str = "before"
    """Where the gate is multiplied in: `before` the norm, or `behind` it; without a norm nothing
    tells them apart."""

    @property
    def channels(self) -> int:
        """Features of all heads."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Features that the convolution sees: channels, and the state's inputs and outputs."""
        return self.channels + 2 * self.groups * self.state

    @property
    def inputs(self) -> tuple[Linear, ...]:
        """The projection."""
        return (self.projection,)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norm of its output."""
        return () if self.norm is None else (self.norm,)

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each head's step bias, rate and share of the input, and the convolution."""
        conv = (self.convolved * self.kernel, *((self.convolved,) if self.conv_bias else ()))
        return (*(self.heads,) * 3, *conv)

    @property
    def states(self) -> tuple[State, ...]:
        """Columns of the convolution, and each head's matrix in fp32."""
        return (
            State(self.convolved * self.kernel),
            State(self.channels * self.state, fp32=True),
        )
