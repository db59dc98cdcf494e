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
