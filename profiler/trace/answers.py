"""Answers to operations whose result depends on values, which meta tensors do not have.

A batch is full, so an unknown mask is all true and an unknown number is one. Routing of tokens to
experts is balanced: what is known of a tensor's sum (a one-hot mask of the chosen experts, its
sums by expert) is carried along, and each expert gets an equal share, rounded up where it is
asked for alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from estimator.errors import UnsupportedError
from estimator.units import ceil_div

_ATEN = torch.ops.aten
ROUTING_LINE = "tokens spread evenly over experts; each expert's share is rounded up"
MASK_LINE = "masks and counts whose values decide shapes are taken as full"


@dataclass(frozen=True, slots=True)
class Sum:
    """What is known of a storage: the sum of its elements, all alike, and how many there are.

    `cumulated` marks running sums, `positions` the indices 0, 1, 2 of a mask's true elements.
    """

    total: int
    count: int
    cumulated: bool = False
    positions: bool = False

    def share(self, elements: int) -> int:
        """Return the sum of so many of the elements, rounded up."""
        return min(self.total, ceil_div(self.total * elements, max(1, self.count)))


class Answers:
    """Answers the operations of one run, and remembers what is known of its tensors.

    Args:
        handle_of: gives a storage's handle, which is never used twice, or None.
        padded: whether sequences differ in length, so that a mask is not all true.
    """

    def __init__(self, handle_of: Callable[[Any], int | None], padded: bool = False) -> None:
        self._handle_of = handle_of
        self._padded = padded
        self._known: dict[int, Sum] = {}
        self._ranges: dict[int, int] = {}
        self.lines: dict[str, None] = {}
        """Assumptions that were made, in order."""

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a data-dependent operation, or NotImplemented for all others."""
        answer = _ANSWERS.get(func)
        if answer is None:
            return NotImplemented
        return answer(self, args, kwargs or {})

    def learn(self, func: Any, args: Any, out: Any) -> None:
        """Remember what an operation that was run tells of its result."""
        lesson = _LESSONS.get(func)
        if lesson is not None:
            lesson(self, args, out)

    def _sum_of(self, tensor: Any) -> Sum | None:
        handle = self._handle_of(tensor)
        return None if handle is None else self._known.get(handle)

    def _keep(self, tensor: Any, known: Sum) -> None:
        handle = self._handle_of(tensor)
        if handle is not None:
            self._known[handle] = known

    def _true_count(self, mask: Any) -> int:
        known = self._sum_of(mask)
        if known is None:
            self.lines[MASK_LINE] = None
            return int(mask.numel())
        self.lines[ROUTING_LINE] = None
        return known.share(mask.numel())

    def _item(self, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if tensor.device.type != "meta":
            return NotImplemented
        known = self._sum_of(tensor)
        if tensor.dtype == torch.bool:
            return not self._padded if known is None else known.total > 0
        value = 1
        if known is not None:
            self.lines[ROUTING_LINE] = None
            value = int(tensor.storage_offset()) if known.positions else known.share(1)
        return float(value) if tensor.dtype.is_floating_point else value

    def _to_copy(self, args: Any, kwargs: Any) -> Any:
        tensor, device = args[0], kwargs.get("device")
        leaves = tensor.device.type == "meta" and device is not None and device.type == "cpu"
        if not leaves:
            return NotImplemented
        dtype = kwargs.get("dtype") or tensor.dtype
        known = self._sum_of(tensor)
        if known is None:
            self.lines[MASK_LINE] = None
            return torch.ones(tensor.shape, dtype=dtype)
        self.lines[ROUTING_LINE] = None
        return _balanced(known, tensor.numel()).reshape(tensor.shape).to(dtype)

    def _index_copy(self, args: Any, kwargs: Any) -> Any:
        """On meta it takes what every device refuses.

        Source: aten/src/ATen/native/TensorAdvancedIndexing.cpp, `index_copy` meta function.
        """
        into, source = args[0], args[3]
        if into.dtype == source.dtype:
            return NotImplemented
        raise UnsupportedError(
            f"the model's code copies {source.dtype} into a tensor of {into.dtype}, which torch "
            "refuses: with a static cache under autocast use cache dynamic, or weights in half "
            "precision"
        )

    def _nonzero(self, args: Any, kwargs: Any) -> Any:
        mask = args[0]
        if mask.device.type != "meta":
            return NotImplemented
        shape = (self._true_count(mask), mask.dim())
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def _index(self, args: Any, kwargs: Any) -> Any:
        tensor, indices = args[0], args[1]
        masks = (torch.bool, torch.uint8)
        if not any(i is not None and i.dtype in masks for i in indices):
            return NotImplemented
        if tensor.device.type != "meta":
            return NotImplemented
        whole: list[Any] = []
        for index in indices:
            if index is None or index.dtype not in masks:
                whole.append(index)
                continue
            rows = torch.empty(self._true_count(index), dtype=torch.int64, device="meta")
            whole.extend([rows] * index.dim())
        return _ATEN.index.Tensor(tensor, whole)

    def _masked_select(self, args: Any, kwargs: Any) -> Any:
        tensor, mask = args
        if tensor.device.type != "meta":
            return NotImplemented
        return tensor.new_empty((self._true_count(mask),))

    def _grouped_mm(self, args: Any, kwargs: Any) -> Any:
        """The meta kernel takes bfloat16 only; CUDA takes fp32 and fp16 too, product by product.

        Source: aten/src/ATen/native/GroupedMMUtils.h, `_grouped_mm_fallback`.
        """
        left, right = args[0], args[1]
        if left.device.type != "meta" or left.dtype == torch.bfloat16:
            return NotImplemented
        shape: tuple[int, ...] = (left.shape[0], right.shape[-1])
        if right.dim() == 2:
            offsets = args[2] if len(args) > 2 else kwargs["offs"]
            shape = (offsets.numel(), *shape)
        return left.new_empty(shape)

    def _bincount(self, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if tensor.device.type != "meta":
            return NotImplemented
        least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
        handle = self._handle_of(tensor)
        values = 1 if handle is None else self._ranges.get(handle, 1)
        return torch.empty(max(least, values), dtype=torch.int64, device="meta")

    def _learn_scatter(self, args: Any, out: Any) -> None:
        self._keep(out, Sum(int(args[2].numel()), int(out.numel())))

    def _learn_counts(self, args: Any, out: Any) -> None:
        self._keep(out, Sum(int(args[0].numel()), int(out.numel())))

    def _learn_choice(self, args: Any, out: Any) -> None:
        handle = self._handle_of(out[1])
        if handle is not None:
            self._ranges[handle] = int(args[0].shape[args[2] if len(args) > 2 else -1])

    def _learn_equal(self, args: Any, out: Any) -> None:
        handle = self._handle_of(args[0])
        values = None if handle is None else self._ranges.get(handle)
        if values is not None:
            self._keep(out, Sum(ceil_div(int(out.numel()), values), int(out.numel())))

    def _learn_same(self, args: Any, out: Any) -> None:
        """Copies, and sums over some dimensions: the total stays."""
        known = self._sum_of(args[0])
        if known is not None:
            total = known.share(args[0].numel())
            self._keep(out, replace(known, total=total, count=int(out.numel())))

    def _learn_part(self, args: Any, out: Any) -> None:
        known = self._sum_of(args[0])
        if known is not None and not known.positions:
            count = int(out.numel())
            self._keep(out, Sum(known.share(count), count))

    def _learn_cumulated(self, args: Any, out: Any) -> None:
        known = self._sum_of(args[0])
        if known is not None:
            self._keep(out, replace(known, cumulated=True))

    def _learn_greater(self, args: Any, out: Any) -> None:
        known = self._sum_of(args[0])
        if known is not None and args[1] == 0:
            count = int(out.numel())
            self._keep(out, Sum(min(count, known.share(count)), count))

    def _learn_positions(self, args: Any, out: Any) -> None:
        if args[0].dim() == 1:
            self._keep(out, Sum(0, int(out.numel()), positions=True))


def _balanced(known: Sum, elements: int) -> Any:
    """Return whole numbers, as equal as possible, that add up to the total of the elements."""
    total = known.total if known.cumulated else known.share(elements)
    base, rest = divmod(total, max(1, elements))
    values = torch.full((elements,), base, dtype=torch.int64)
    values[:rest] += 1
    return values.cumsum(0) if known.cumulated else values


_ANSWERS: dict[Any, Callable[[Answers, Any, Any], Any]] = {
    _ATEN._local_scalar_dense.default: Answers._item,
    _ATEN._to_copy.default: Answers._to_copy,
    _ATEN.index_copy_.default: Answers._index_copy,
    _ATEN.nonzero.default: Answers._nonzero,
    _ATEN.index.Tensor: Answers._index,
    _ATEN.masked_select.default: Answers._masked_select,
    _ATEN.bincount.default: Answers._bincount,
    _ATEN._grouped_mm.default: Answers._grouped_mm,
}

_LESSONS: dict[Any, Callable[[Answers, Any, Any], None]] = {
    _ATEN.scatter_.value: Answers._learn_scatter,
    _ATEN.scatter.value: Answers._learn_scatter,
    _ATEN.histc.default: Answers._learn_counts,
    _ATEN.bincount.default: Answers._learn_counts,
    _ATEN.topk.default: Answers._learn_choice,
    _ATEN.eq.Scalar: Answers._learn_equal,
    _ATEN._to_copy.default: Answers._learn_same,
    _ATEN.clone.default: Answers._learn_same,
    _ATEN.sum.dim_IntList: Answers._learn_same,
    _ATEN.index.Tensor: Answers._learn_part,
    _ATEN.index_select.default: Answers._learn_part,
    _ATEN.cumsum.default: Answers._learn_cumulated,
    _ATEN.gt.Scalar: Answers._learn_greater,
    _ATEN.ne.Scalar: Answers._learn_greater,
    _ATEN.nonzero.default: Answers._learn_positions,
}
