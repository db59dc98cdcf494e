"""Formulas of the optimizers: what they keep, and what a step holds for a moment.

Source: torch/optim/{adam,sgd,adagrad,rmsprop}.py (`_multi_tensor_*`, `_fused_adam`);
bitsandbytes/optim/optimizer.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from estimator.architecture.adafactor import (
    adafactor_state_sizes,
    adafactor_temporary,
    adapter_sides,
    base_sides,
)
from estimator.architecture.inventory import Held, held
from estimator.case import Case
from estimator.errors import UnsupportedError
from estimator.spec import ModelSpec
from estimator.units import ceil_div

BITSANDBYTES_NAMES = re.compile(r"adamw_(bnb_)?8bit|paged|lion|ademamix|rmsprop_bnb")
"""Names of optimizers that bitsandbytes has."""

_SMALLEST_8BIT = 4096
_SMALLEST_PAGED = 100_000
_BLOCK_8BIT = 256


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """`states` are kept between steps; `temporary` is alive at the highest instant of a step."""

    states: Held
    temporary: Held
    why: str


def optimizer_memory(
    case: Case, tensors: tuple[int, ...], width: int, spec: ModelSpec, idle: tuple[int, ...] = ()
) -> OptimizerMemory:
    """Return what the case's optimizer needs for the tensors that train.

    Args:
        tensors: elements of each tensor that trains.
        width: bytes of an element of the parameters, hence of torch's states.
        spec: the model, whose shapes matter to Adafactor alone.
        idle: elements of each tensor that may train but never gets a gradient. Adagrad, which
            makes its states when it is set up, has some for them, too.

    Raises:
        UnsupportedError: an optimizer without a formula.
    """
    name = case.optimizer
    copy = held(tensors, width)
    # Norms of the gradients, fp32, one a tensor, and their stack (clip_grad_norm_).
    count = len(tensors)
    norms = Held((width + 4) * count, 512 * count + 512 * 4)
    if name == "adamw_torch_fused":
        # exp_avg, exp_avg_sq, and a step counter a tensor on the device.
        states = held(tensors, width, copies=2) + Held(4 * count, 512 * count)
        return OptimizerMemory(states, norms, "fused AdamW makes no temporary copies")
    if name == "adamw_torch":
        why = "foreach AdamW's square roots are one more copy of the parameters"
        return OptimizerMemory(held(tensors, width, copies=2), _largest(copy, norms), why)
    if name == "sgd":
        states = copy if case.momentum else Held()
        return OptimizerMemory(states, norms, "foreach SGD works in place")
    if name == "adagrad":
        why = "foreach Adagrad's square roots and steps are two more copies of the parameters"
        return OptimizerMemory(copy + held(idle, width), copy + copy, why)
    if name == "rmsprop":
        states = held(tensors, width, copies=2 if case.momentum else 1)
        why = "foreach RMSprop's square roots are one more copy of the parameters"
        return OptimizerMemory(states, _largest(copy, norms), why)
    if name == "adafactor":
        sides = base_sides(spec) if case.lora is None else adapter_sides(spec, case.lora.r)
        temporary = _largest(adafactor_temporary(tensors, sides, width), norms)
        why = "Adafactor squares one gradient at a time, in fp32"
        return OptimizerMemory(held(adafactor_state_sizes(tensors, sides), 1), temporary, why)
    if BITSANDBYTES_NAMES.search(name):
        states = held(_bitsandbytes_sizes(case, tensors, spec), 1)
        return OptimizerMemory(states, norms, "bitsandbytes updates in place")
    raise UnsupportedError(
        f"the architecture formulas do not know optimizer {name!r} yet: "
        "use adamw_torch_fused, adamw_bnb_8bit or sgd"
    )


@dataclass(frozen=True, slots=True)
class OptimizerSizes:
    """Bytes of an optimizer's tensors, one by one in the order in which they are made.

    `temporaries` are groups: all of a group are alive at once, and the one before goes when the
    next one is there.
    """

    states: tuple[int, ...]
    temporaries: tuple[tuple[int, ...], ...]


def optimizer_sizes(
    case: Case, tensors: tuple[int, ...], width: int, spec: ModelSpec, idle: tuple[int, ...] = ()
) -> OptimizerSizes:
    """Return the tensors whose sum `optimizer_memory` gives; it takes the same arguments."""
    name = case.optimizer
    copies = tuple(count * width for count in tensors)
    if name == "adafactor":
        sides = base_sides(spec) if case.lora is None else adapter_sides(spec, case.lora.r)
        squares = tuple((4 * count,) * (2 if width == 4 else 4) for count in tensors)
        return OptimizerSizes(tuple(adafactor_state_sizes(tensors, sides)), squares)
    if BITSANDBYTES_NAMES.search(name):
        return OptimizerSizes(tuple(_bitsandbytes_sizes(case, tensors, spec)), ())
    states, passing = {
        "adamw_torch_fused": (2, 0),
        "adamw_torch": (2, 1),
        "sgd": (1 if case.momentum else 0, 0),
        "adagrad": (1, 2),
        "rmsprop": (2 if case.momentum else 1, 1),
    }[name]
    counter = (4,) if name == "adamw_torch_fused" else ()
    kept = tuple(size for copy in copies for size in ((copy,) * states + counter))
    if name == "adagrad":
        kept += tuple(count * width for count in idle)
    return OptimizerSizes(kept, (copies * passing,))


def _bitsandbytes_sizes(case: Case, tensors: tuple[int, ...], spec: ModelSpec) -> list[int]:
    """States of a byte an element and an fp32 scale a block of 256 elements: two a tensor, one for
    Lion and RMSprop; AdEMAMix's first is twice as large.

    fp32 in the 32-bit optimizers, for tensors below 4096 elements, and for embeddings, which come
    first and which Trainer registers for it. Paged ones put states of 100 000 elements or more in
    managed memory, which PyTorch does not count.
    Source: bitsandbytes/optim/optimizer.py (`init_state`, `get_state_buffer`).
    """
    name = case.optimizer
    embeddings = (
        0
        if case.lora
        else 1 + (bool(spec.position_rows) and not spec.positions_frozen) + bool(spec.token_tables)
    )
    if "ademamix" in name:
        parts: tuple[int, ...] = (2, 1)
    else:
        parts = (1,) if "lion" in name or "rmsprop" in name else (1, 1)
    paged = "paged" in name
    sizes: list[int] = []
    if "8bit" in name:
        # The two tables of 256 values, shared by all tensors.
        sizes += [1024] * 2
    for index, count in enumerate(tensors):
        eight = "8bit" in name and count >= _SMALLEST_8BIT and index >= embeddings
        if not (paged and count >= _SMALLEST_PAGED):
            sizes += [part * (count if eight else 4 * count) for part in parts]
        if eight:
            sizes += [4 * part * ceil_div(count, _BLOCK_8BIT) for part in parts]
    return sizes


def _largest(first: Held, second: Held) -> Held:
    return first if first.allocated_bytes >= second.allocated_bytes else second
