"""Formulas of RecurrentGemma's layer.

Source: transformers/models/recurrent_gemma/modeling_recurrent_gemma.py,
`RecurrentGemmaDecoderLayer.forward`, `RecurrentGemmaMlp.forward`.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, add, linear, multiply
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Mlp


def griffin_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The mixer's input and what attention returns beside its output are named to the end."""
    assert isinstance(spec.mlp, Mlp)
    normed = norm(tape, x, spec.input_norm, ctx)
    mixed, probabilities = self_attention(tape, normed, spec.attention, ctx)
    residual = add(tape, mixed, x)
    inner = norm(tape, residual, spec.post_norm, ctx)
    tape.drop(mixed)
    fed = _mlp(tape, inner, spec.mlp, ctx)
    tape.drop(inner)
    out = add(tape, fed, residual)
    tape.drop(fed, residual, normed, probabilities)
    return out


def _mlp(tape: Tape, x: Tensor, spec: Mlp, ctx: Context) -> Tensor:
    """`down(act(gate(x)) * up(x))`, with a name for the gate."""
    assert spec.gate is not None
    opened = linear(tape, x, spec.gate, ctx)
    gate = activation(tape, opened, spec.activation, ctx)
    tape.drop(opened)
    up = linear(tape, x, spec.up, ctx)
    product = multiply(tape, gate, up)
    tape.drop(up)
    out = linear(tape, product, spec.down, ctx)
    tape.drop(product, gate)
    return out
