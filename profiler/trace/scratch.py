"""Kernel-internal scratch: bytes that CUDA kernels allocate and meta kernels do not show.

Each term names its source. A term is alive only while its operation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from estimator.units import ceil_div, round_up

SORT_FREE_INDICES = 3072
GEMM_4BIT_ROWS = 4


def _embedding_backward(args: Any) -> list[tuple[str, int]]:
    """Sorted and original positions of the indices, int64 [tokens] each.

    Source: aten/src/ATen/native/cuda/Embedding.cu, `embedding_dense_backward_cuda`: above 3072
    indices they are sorted first, below a kernel without scratch runs.
    """
    count = int(args[1].numel())
    if count <= SORT_FREE_INDICES:
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


def _gemm_4bit(args: Any) -> list[tuple[str, int]]:
    """The whole weight in the input's dtype, above a few rows; below, a kernel reads it packed.

    With double quantization, its scales in fp32 first (twice, for the offset is added out of
    place). Between 5 and 512 rows the card decides which kernel runs; the larger is taken.
    Source: bitsandbytes/backends/cuda/ops.py (`gemm_4bit`, `_gemm_4bit_use_custom_cuda`),
    backends/default/ops.py (`_gemm_4bit_default_impl`).
    """
    x, (outputs, inputs), block = args[0], args[2], args[4]
    if x.numel() // x.shape[-1] <= GEMM_4BIT_ROWS:
        return []
    terms = [("temporaries", outputs * inputs * x.element_size())]
    if len(args) > 7 and args[7] is not None:
        terms.append(("temporaries", 4 * ceil_div(outputs * inputs, block)))
    return terms


def _vectorwise_quant(args: Any) -> list[tuple[str, int]]:
    """`A.abs() >= threshold`: the absolute values, and a mask of one byte an element."""
    x = args[0]
    return [("temporaries", x.numel() * x.element_size()), ("temporaries", x.numel())]


def _mixed_scaled_mm(args: Any) -> list[tuple[str, int]]:
    """The int32 product, and its fp16 form where the output is of another dtype.

    Source: bitsandbytes/backends/default/ops.py (`int8_scaled_mm`), backends/cuda/ops.py
    (`int8_mm_dequant`).
    """
    x, quantized, weight = args[0], args[1], args[2]
    outputs = quantized.numel() // quantized.shape[-1] * weight.shape[0]
    terms = [("temporaries", 4 * outputs)]
    if x.dtype != torch.float16:
        terms.append(("temporaries", 2 * outputs))
    return terms


def _index_put(args: Any) -> list[tuple[str, int]]:
    """Where indices may repeat they are sorted first: linear and sorted indices, positions before
    and after, int64 each, and the sort's own copy of both.

    Source: aten/src/ATen/native/cuda/Indexing.cu, `index_put_with_sort_kernel`.
    """
    accumulates = len(args) > 3 and bool(args[3])
    count = max((int(i.numel()) for i in args[1] if i is not None), default=0)
    return [("temporaries", 8 * count)] * 6 if accumulates else []


@dataclass(frozen=True, slots=True)
class Term:
    """A term by its name, and the function from an operation's arguments to its parts.

    Its docstring gives shapes and source. `sizes` returns (component, bytes) pairs.
    """

    name: str
    sizes: Callable[[Any], list[tuple[str, int]]]


TERMS = {
    "aten::embedding_dense_backward": Term("embedding-sort", _embedding_backward),
    "aten::index_put": Term("index-sort", _index_put),
    "aten::_scaled_dot_product_flash_attention_backward": Term("flash-backward", _flash_backward),
    "aten::_scaled_dot_product_efficient_attention_backward": Term(
        "efficient-backward", _efficient_backward
    ),
    "bitsandbytes::gemm_4bit": Term("4bit-dequantized", _gemm_4bit),
    "bitsandbytes::int8_vectorwise_quant": Term("int8-outliers", _vectorwise_quant),
    "bitsandbytes::int8_mixed_scaled_mm": Term("int8-product", _mixed_scaled_mm),
}
"""Scratch by the operation's name."""

NAMES = tuple(term.name for term in TERMS.values())
"""The terms' names, by which a trace can be made without them."""


def multiplies(func: Any, args: Any) -> bool:
    """Whether a package's operation runs a cuBLAS product: a 4-bit weight once it is whole."""
    return bool(func.name() == "bitsandbytes::gemm_4bit" and _gemm_4bit(args))


def before(func: Any, args: Any, without: Collection[str] = ()) -> list[tuple[str, int]]:
    """Return the scratch that an operation holds while it runs, but for the terms left out."""
    term = TERMS.get(func.name())
    return [] if term is None or term.name in without else term.sizes(args)
