"""Formulas of gates on what attention makes, in front of its output's projection.

Source: transformers/models/{afmoe,laguna}/modeling_*.py, `AfmoeAttention.forward`,
`LagunaAttention.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import cast, linear, multiply, operands
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention


def early_gate(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor | None:
    """Project the gate beside queries, keys and values, where the family does (AFMoE)."""
    if spec.gate is None or spec.gate_function != "sigmoid":
        return None
    return linear(tape, x, spec.gate, ctx)


def gated_output(
    tape: Tape, out: Tensor, x: Tensor, gate: Tensor | None, spec: Attention, ctx: Context
) -> Tensor:
    """Multiply the attention's output (consumed) by its gate, where it has one.

    Args:
        x: the attention's input, borrowed.
        gate: what `early_gate` made, borrowed; its sigmoid is taken.
    """
    if spec.gate is None:
        return out
    if gate is not None:
        opened = tape.op(gate.count, gate.width, (gate,), saves_out=True)
        product = multiply(tape, out, opened)
        tape.drop(out, opened)
        return product
    narrow = linear(tape, x, spec.gate, ctx)
    wide = cast(tape, narrow, 4)
    tape.drop(narrow)
    soft = tape.op(wide.count, 4, (wide,), (wide,))
    tape.drop(wide)
    opened = cast(tape, soft, out.width)
    tape.drop(soft)
    # One number a head is spread over it: backward makes the whole product before it sums.
    full = (out.size,) if opened.grad and opened.count < out.count else ()
    product = tape.op(out.count, out.width, (opened, out), operands(out, opened), temporaries=full)
    tape.drop(out, opened)
    return product
