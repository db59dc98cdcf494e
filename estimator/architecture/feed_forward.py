"""Formulas of the feed-forward blocks.

Source: transformers' `LlamaMLP.forward`, `GPT2MLP.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import activation, linear, operands
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Mlp


def mlp(tape: Tape, x: Tensor, spec: Mlp, ctx: Context) -> Tensor:
    """Gated: down(act(gate(x)) * up(x)); plain: down(act(up(x)))."""
    if spec.gate is None:
        inner = linear(tape, x, spec.up, ctx)
        hidden = activation(tape, inner, spec.activation)
        tape.drop(inner)
    else:
        gate = linear(tape, x, spec.gate, ctx)
        activated = activation(tape, gate, spec.activation)
        tape.drop(gate)
        up = linear(tape, x, spec.up, ctx)
        saves = operands(activated, up)
        hidden = tape.op(activated.count, activated.width, (activated, up), saves)
        tape.drop(activated, up)
    out = linear(tape, hidden, spec.down, ctx)
    tape.drop(hidden)
    return out
