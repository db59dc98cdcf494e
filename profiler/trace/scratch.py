"""Kernel-internal scratch: bytes that CUDA kernels allocate and meta kernels do not show.

Each term names its source. A term is alive only while its operation runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from estimator.units import round_up

_SORT_FREE_INDICES = 3072


def _embedding_backward(args: Any) -> list[tuple[str, int]]:
    """Sorted and original positions of the indices, int64 [tokens] each.

    Source: aten/src/ATen/native/cuda/Embedding.cu, `embedding_dense_backward_cuda`: above 3072
    indices they are sorted first, below a kernel without scratch runs.
    """
    count = int(args[1].numel())
    if count <= _SORT_FREE_INDICES:
        return []
    return [("temporaries", 8 * count), ("temporaries", 8 * count)]


def _flash_backward(args: Any) -> list[tuple[str, int]]:
    """fp32 accumulators: [B, S', a, d'] of the query gradient and [B, a, S'] of the softmax.

    S' is S rounded up to 128, d' the head size to 32 (64 above 128). With grouped heads, key and
    value gradients of all query heads exist before they are summed over the groups.
    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, `mha_bwd`.
    """
    query, key = args[1], args[2]
    batch, heads, queries, head_size = query.shape
    queries_rounded = round_up(queries, 128)
    head_rounded = round_up(head_size, 32 if head_size <= 128 else 64)
    sizes = [
        4 * batch * heads * queries_rounded,
        4 * batch * heads * queries_rounded * head_rounded,
    ]
    if key.shape[1] != heads:
        expanded = batch * key.shape[2] * heads * head_size * query.element_size()
        sizes += [expanded, expanded]
    return [("temporaries", size) for size in sizes]


def _efficient_backward(args: Any) -> list[tuple[str, int]]:
    """`delta`, fp32 [B, a, S], and: in fp32 the product it is summed from, in half precision
    the fp32 accumulator of the query gradient.

    Source: aten/src/ATen/native/transformers/cuda/attention_backward.cu and
    mem_eff_attention/kernel_backward.h (`kNeedsAccumGradQ`, `kKernelComputesDelta`).
    """
    query = args[1]
    batch, heads, queries, head_size = query.shape
    rows = batch * heads * queries
    return [("temporaries", 4 * rows), ("temporaries", 4 * rows * head_size)]


TERMS: dict[Any, Callable[[Any], list[tuple[str, int]]]] = {
    torch.ops.aten.embedding_dense_backward.default: _embedding_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
}
"""Scratch by operation: a function from its arguments to (component, bytes) pairs."""


def before(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int]]:
    """Return the scratch that an operation holds while it runs."""
    term = TERMS.get(func)
    return [] if term is None else term(args)
