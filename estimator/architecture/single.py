"""Formulas of layers of one block: a norm, a mixer or an MLP, and the residual.

Source: transformers/models/mamba/modeling_mamba.py (`MambaBlock.forward`), nemotron_h.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.parts import add, cast
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer


def single_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The residual as it comes in."""
    return _layer(tape, x, spec, ctx, x.width)


def single_layer_fp32(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The residual in fp32."""
    return _layer(tape, x, spec, ctx, 4)


def _layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context, residual_width: int) -> Tensor:
    narrow = cast(tape, x, ctx.width)
    normed = norm(tape, narrow, spec.input_norm, ctx)
    tape.drop(narrow)
    residual = cast(tape, x, residual_width)
    probabilities = None
    if spec.attends:
        mixed, probabilities = self_attention(tape, normed, spec.attention, ctx)
    else:
        mixed = feed_forward(tape, normed, spec.mlp, ctx)
    tape.drop(normed)
    out = add(tape, residual, mixed)
    tape.drop(residual, mixed, probabilities)
    return out
