"""Formulas of layers whose code has the MLP in it: each step lets go of the one before.

Source: transformers' `OPTDecoderLayer.forward`, `BioGptDecoderLayer.forward`.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, add, dropout, linear
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Mlp


def inlined_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Norm, attention, residual, norm, plain MLP, residual."""
    return _layer(tape, x, spec, ctx, viewed=True)


def flat_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The same with an MLP on [B * Q, hidden], whose linears' gradients are no views (OPT)."""
    return _layer(tape, x, spec, ctx, viewed=False)


def _layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context, viewed: bool) -> Tensor:
    assert spec.input_norm is not None
    assert spec.post_norm is not None
    assert isinstance(spec.mlp, Mlp)
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    tape.drop(normed)
    attended = _dropped(tape, attended, spec, ctx)
    h = add(tape, x, attended)
    tape.drop(attended)
    normed = norm(tape, h, spec.post_norm, ctx)
    inner = linear(tape, normed, spec.mlp.up, ctx, viewed)
    tape.drop(normed)
    hidden = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    fed = linear(tape, hidden, spec.mlp.down, ctx, viewed)
    tape.drop(hidden)
    fed = _dropped(tape, fed, spec, ctx)
    out = add(tape, h, fed)
    tape.drop(fed, h, probabilities)
    return out


def _dropped(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    out = dropout(tape, x, spec.dropout, ctx)
    tape.drop(x)
    return out
