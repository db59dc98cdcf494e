"""Formulas of the norm of a state space's output, and of the gate that multiplies it.

Source: `MambaRMSNormGated` of transformers/models/mamba2/modeling_mamba2.py and its copies;
falcon_h1, `FalconH1RMSNormGated` and `FalconH1Mixer.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import cast, multiply
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import StateSpaceDual


def gated_norm(tape: Tape, x: Tensor, gate: Tensor, spec: StateSpaceDual, ctx: Context) -> Tensor:
    """Return `norm(x * silu(gate))` in fp32, `norm(x) * silu(gate)`, or without a norm the product
    alone; `x` ([B, Q, channels], fp32 but in decoding) is borrowed."""
    if spec.norm is None:
        return _opened_product(tape, x, gate)
    if spec.gate == "behind":
        wide = cast(tape, x, 4)
        normed = norm(tape, wide, spec.norm, ctx)
        tape.drop(wide)
    else:
        normed = tape.alias(x)
    wide = cast(tape, gate, 4)
    product = _opened_product(tape, normed, wide)
    tape.drop(wide, normed)
    if spec.gate == "behind":
        return product
    out = norm(tape, product, spec.norm, ctx)
    tape.drop(product)
    return out


def _opened_product(tape: Tape, x: Tensor, gate: Tensor) -> Tensor:
    """`x * silu(gate)`."""
    opened = tape.op(gate.count, gate.width, (gate,), (gate,))
    product = multiply(tape, x, opened)
    tape.drop(opened)
    return product
