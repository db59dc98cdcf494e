"""Formulas of the optimizers: what they keep, and what a step holds for a moment.

Source: torch/optim/adamw.py, adam.py and sgd.py (`_multi_tensor_*`, `_fused_adam`).
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.architecture.inventory import Held, held
from estimator.case import Case
from estimator.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """`states` are kept between steps; `temporary` is alive at the highest instant of a step."""

    states: Held
    temporary: Held
    why: str


def optimizer_memory(case: Case, tensors: tuple[int, ...], width: int) -> OptimizerMemory:
    """Return what the case's optimizer needs for the tensors that train.

    Args:
        tensors: elements of each tensor that trains.
        width: bytes of an element of the parameters, hence of the states.

    Raises:
        UnsupportedError: an optimizer without a formula.
    """
    copy = held(tensors, width)
    # Norms of the gradients, fp32, one a tensor, and their stack (clip_grad_norm_).
    count = len(tensors)
    norms = Held((width + 4) * count, 512 * count + 512 * 4)
    if case.optimizer == "adamw_torch_fused":
        # exp_avg, exp_avg_sq, and a step counter a tensor on the device.
        states = held(tensors, width, copies=2) + Held(4 * count, 512 * count)
        return OptimizerMemory(states, norms, "fused AdamW makes no temporary copies")
    if case.optimizer == "adamw_torch":
        return OptimizerMemory(
            held(tensors, width, copies=2),
            _largest(copy, norms),
            "foreach AdamW's square roots are one more copy of the parameters",
        )
    if case.optimizer == "sgd":
        states = copy if case.momentum else Held()
        return OptimizerMemory(states, norms, "foreach SGD works in place")
    raise UnsupportedError(
        f"the architecture formulas do not know optimizer {case.optimizer!r} yet: "
        "use gpumem trace, or adamw_torch_fused, adamw_torch or sgd"
    )


def _largest(first: Held, second: Held) -> Held:
    return first if first.allocated_bytes >= second.allocated_bytes else second
