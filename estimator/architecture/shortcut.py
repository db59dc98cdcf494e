"""Formulas of LongCat's layer: two attentions and two MLPs in a row, a mixture beside the second.

Source: transformers/models/longcat_flash/modeling_longcat_flash.py,
`LongcatFlashDecoderLayer.forward`.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.feed_forward import mlp
from estimator.architecture.looped_experts import looped_mixture
from estimator.architecture.norms import norm
from estimator.architecture.parts import add
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Moe


def shortcut_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Play a layer; `x` ([B, Q, hidden]) is borrowed."""
    half = spec.doubled
    assert half is not None
    assert isinstance(spec.mlp, Moe)
    h, first = _attended(tape, x, spec, ctx)
    normed = norm(tape, h, spec.post_norm, ctx)
    shortcut = looped_mixture(tape, normed, spec.mlp, ctx)
    fed = mlp(tape, normed, half.mlp, ctx)
    tape.drop(normed)
    middle = add(tape, h, fed)
    tape.drop(fed, h)
    h, second = _attended(tape, middle, spec, ctx)
    tape.drop(middle, first)
    normed = norm(tape, h, spec.post_norm, ctx)
    fed = mlp(tape, normed, half.mlp, ctx)
    tape.drop(normed)
    both = add(tape, h, fed)
    tape.drop(fed)
    out = add(tape, both, shortcut)
    tape.drop(both, shortcut, h, second)
    return out


def _attended(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Add the attention's output to `x`, which is borrowed; return the probabilities, too."""
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    tape.drop(normed)
    out = add(tape, x, attended)
    tape.drop(attended)
    return out, probabilities
