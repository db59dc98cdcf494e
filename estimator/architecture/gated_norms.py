"""Formulas of the norm of a state space's output, which a gate multiplies.

Source: `MambaRMSNormGated` of transformers/models/mamba2/modeling_mamba2.py and its copies.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import cast, multiply
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import StateSpaceDual


def gated_norm(tape: Tape, x: Tensor, gate: Tensor, spec: StateSpaceDual, ctx: Context) -> Tensor:
    """`norm(x * silu(gate))` in fp32; `x` ([B, Q, channels] fp32) is borrowed."""
    wide = cast(tape, gate, 4)
    opened = tape.op(wide.count, 4, (wide,), (wide,))
    tape.drop(wide)
    product = multiply(tape, x, opened)
    tape.drop(opened)
    out = norm(tape, product, spec.norm, ctx)
    tape.drop(product)
    return out
