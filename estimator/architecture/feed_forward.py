"""Formulas of the feed-forward blocks.

Source: transformers' `LlamaMLP.forward`, `GPT2MLP.forward`, `Phi3MLP.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, linear, low_rank_sum, multiply
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.xielu import xielu
from estimator.spec import Mlp


def mlp(tape: Tape, x: Tensor, spec: Mlp, ctx: Context, viewed: bool = True) -> Tensor:
    """Gated: down(act(gate(x)) * up(x)); plain: down(act(up(x))); `viewed` as for `linear`."""
    if spec.fused_gate:
        return _fused_gate(tape, x, spec, ctx)
    if spec.gate is None:
        inner = linear(tape, x, spec.up, ctx, viewed)
        if spec.activation == "xielu":
            hidden = xielu(tape, inner, ctx)
        else:
            hidden = activation(tape, inner, spec.activation, ctx)
        tape.drop(inner)
    else:
        gate = linear(tape, x, spec.gate, ctx, viewed)
        activated = activation(tape, gate, spec.activation, ctx)
        tape.drop(gate)
        up = linear(tape, x, spec.up, ctx, viewed)
        hidden = multiply(tape, up, activated)
        tape.drop(activated, up)
    if spec.inner_norm is not None:
        product, hidden = hidden, norm(tape, hidden, spec.inner_norm, ctx)
        tape.drop(product)
    out = linear(tape, hidden, spec.down, ctx, viewed)
    tape.drop(hidden)
    return out


def _fused_gate(tape: Tape, x: Tensor, spec: Mlp, ctx: Context) -> Tensor:
    """Gate and up are views of one product, which the gate's name holds to the end.

    Source: transformers/models/phi3/modeling_phi3.py, `Phi3MLP.forward`.
    """
    both = linear(tape, x, spec.up, ctx)
    if spec.adapter:
        both = low_rank_sum(tape, x, both, spec.adapter, ctx)
    half = both.count // 2
    gate, up = tape.split(both, (half, half), both.size)
    activated = activation(tape, gate, spec.activation, ctx)
    product = multiply(tape, up, activated)
    tape.drop(both, up, activated)
    out = linear(tape, product, spec.down, ctx)
    tape.drop(product, gate)
    return out
