"""Formulas of Falcon-H1's layer: Mamba 2 beside attention, and numbers that multiply everything.

Source: transformers/models/falcon_h1/modeling_falcon_h1.py, `FalconH1DecoderLayer.forward`,
`FalconH1MLP.forward`.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, add, linear, multiply, scale
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Mlp


def falcon_h1_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Both mixers read the same norm; what each returns is named to the layer's end."""
    assert spec.beside is not None
    assert isinstance(spec.mlp, Mlp)
    normed = norm(tape, x, spec.input_norm, ctx)
    mixed, _ = self_attention(tape, normed, spec.beside, ctx)
    mixed = _scaled(tape, mixed)
    given = scale(tape, normed)
    attended, probabilities = self_attention(tape, given, spec.attention, ctx)
    tape.drop(given)
    attended = _scaled(tape, attended)
    both = add(tape, mixed, attended)
    tape.drop(normed)
    h = add(tape, x, both)
    tape.drop(both)
    normed = norm(tape, h, spec.post_norm, ctx)
    fed = _mlp(tape, normed, spec.mlp, ctx)
    tape.drop(normed)
    out = add(tape, h, fed)
    tape.drop(fed, h, mixed, attended, probabilities)
    return out


def _mlp(tape: Tape, x: Tensor, spec: Mlp, ctx: Context) -> Tensor:
    """`down(up(x) * act(gate(x) * number)) * number`."""
    assert spec.gate is not None
    up = linear(tape, x, spec.up, ctx)
    gate = _scaled(tape, linear(tape, x, spec.gate, ctx))
    active = activation(tape, gate, spec.activation, ctx)
    tape.drop(gate)
    product = multiply(tape, up, active)
    tape.drop(up, active)
    out = _scaled(tape, linear(tape, product, spec.down, ctx))
    tape.drop(product)
    return out


def _scaled(tape: Tape, x: Tensor) -> Tensor:
    """`x * number`; `x` is consumed."""
    out = scale(tape, x)
    tape.drop(x)
    return out
