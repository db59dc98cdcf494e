"""What Gemma 3n adds: several streams of hidden states (AltUp), and a low-rank path (Laurel)."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.spec.linears import Linear, Norm


@dataclass(frozen=True, slots=True)
class AltUp:
    """A layer's mixing of `streams` hidden states, of which it computes the first.

    `router` and `norm` make a number a stream of the first one; `prediction` makes of those how
    each stream is predicted from all, `correction` how much each is corrected by what the layer
    has made. `left`, `right` and `laurel_norm` are the path beside the attention.

    Source: AltUp, https://arxiv.org/abs/2301.13310; LAuReL, https://arxiv.org/abs/2411.07501;
    transformers/models/gemma3n/modeling_gemma3n.py.
    """

    streams: int
    router: Linear
    prediction: Linear
    correction: Linear
    norm: Norm
    left: Linear
    right: Linear
    laurel_norm: Norm
    scaled: bool
    """Whether the first stream is multiplied by a parameter before the layer's own input gates."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears."""
        return (self.left, self.right, self.router, self.prediction, self.correction)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its norms."""
        return self.norm, self.laurel_norm


@dataclass(frozen=True, slots=True)
class StreamEnds:
    """Linears that make all streams but the first of the embeddings, and that undo it."""

    into: tuple[Linear, ...]
    out_of: tuple[Linear, ...]

    @property
    def streams(self) -> int:
        """Streams of hidden states."""
        return 1 + len(self.into)
