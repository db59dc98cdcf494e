"""Formulas of layers whose code has the MLP in it: each step lets go of the one before.

Source: transformers' `OPTDecoderLayer.forward`, `BioGptDecoderLayer.forward`.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, add, dropout, linear
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Mlp, Norm


def inlined_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Norm, attention, residual, norm, plain MLP, residual."""
    return _layer(tape, x, spec, ctx, viewed=True)


def nested_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The same where one statement computes the inner product and its activation (mBART): what
    both read is named until then."""
    return _layer(tape, x, spec, ctx, viewed=True, nested=True)


def flat_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The same with an MLP on [B * Q, hidden], whose linears' gradients are no views (OPT)."""
    return _layer(tape, x, spec, ctx, viewed=False)


def post_norm_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Attention, residual, norm, plain MLP, residual, norm (BART)."""
    attended, probabilities = self_attention(tape, x, spec.attention, ctx)
    h = _summed(tape, _dropped(tape, attended, spec, ctx), x, spec.attention_out_norm, ctx)
    fed = _dropped(tape, _fed(tape, h, spec, ctx, viewed=True), spec, ctx)
    out = _summed(tape, fed, h, spec.mlp_out_norm, ctx)
    tape.drop(h, probabilities)
    return out


def _summed(tape: Tape, x: Tensor, residual: Tensor, after: Norm | None, ctx: Context) -> Tensor:
    """The sum's norm; `x` is consumed."""
    total = add(tape, residual, x)
    tape.drop(x)
    out = norm(tape, total, after, ctx)
    tape.drop(total)
    return out


def _fed(tape: Tape, x: Tensor, spec: Layer, ctx: Context, viewed: bool) -> Tensor:
    assert isinstance(spec.mlp, Mlp)
    inner = linear(tape, x, spec.mlp.up, ctx, viewed)
    active = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    hidden = dropout(tape, active, spec.mlp.inner_dropout, ctx)
    tape.drop(active)
    fed = linear(tape, hidden, spec.mlp.down, ctx, viewed)
    tape.drop(hidden)
    return fed


def _layer(
    tape: Tape, x: Tensor, spec: Layer, ctx: Context, viewed: bool, nested: bool = False
) -> Tensor:
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
    if not nested:
        tape.drop(normed)
    active = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    if nested:
        tape.drop(normed)
    hidden = dropout(tape, active, spec.mlp.inner_dropout, ctx)
    tape.drop(active)
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
