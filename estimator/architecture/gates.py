"""Formulas of what stands between a mixture's two products: the gate and its activation.

Source: transformers/integrations/moe.py, `_default_apply_gate`; models/gpt_oss/modeling_gpt_oss.py,
`GptOssExperts._apply_gate`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import activation, multiply, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Moe


def gated(tape: Tape, inner: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """act(gate) * up, of the two halves of one tensor (borrowed)."""
    if not spec.gated:
        return activation(tape, inner, spec.activation, ctx)
    if spec.gate_style == "clamped_pairs":
        return _clamped_pairs(tape, inner)
    half = inner.count // 2
    gate, up = tape.split(inner, (half, half), inner.size)
    activated = activation(tape, gate, spec.activation, ctx)
    out = multiply(tape, activated, up)
    tape.drop(activated, gate, up)
    return out


def _clamped_pairs(tape: Tape, inner: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(a * gate), of every other feature, both clamped first."""
    every_other = [tape.view(inner, inner.count // 2, inner.size) for _ in range(2)]
    gate, up = (
        _clamped(tape, part, bounds) for part, bounds in zip(every_other, (1, 2), strict=True)
    )
    scaled = scale(tape, gate)
    opened = tape.op(gate.count, gate.width, (scaled,), saves_out=True)
    tape.drop(scaled)
    unit = multiply(tape, gate, opened)
    tape.drop(opened)
    raised = tape.op(up.count, up.width, (up,), grads=(PASS,))
    out = multiply(tape, raised, unit)
    tape.drop(raised, gate, up, unit, *every_other)
    return out


def _clamped(tape: Tape, x: Tensor, bounds: int) -> Tensor:
    """clamp saves its input, and backward makes a mask of one byte an element for each bound."""
    return tape.op(x.count, x.width, (x,), (x,), temporaries=(x.count,) * bounds)
