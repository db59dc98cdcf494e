"""Attention on meta tensors as CUDA would run it.

On meta, `scaled_dot_product_attention` takes the math path. A trace replaces the function by one
that calls the fused operation CUDA would choose (a `TorchFunctionMode` would not do: it is off
inside backward, where checkpointing plays a block again).

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend`: flash, then
memory-efficient, then math) and attention.cpp (padding of head sizes and of masks).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from profiler.trace.autocast import autocast_dtype

FLASH_NAME = "gpumem_fused"  # a name with "flash" would make transformers look for the package
_MAX_HEAD_SIZE = 256
_MASK_ALIGNMENT = 16


def cuda_sdpa(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Stand in for `torch.nn.functional.scaled_dot_product_attention` on meta tensors.

    Args:
        query: [batch, heads, queries, head size].
        key, value: [batch, key/value heads, keys, head size].
        attn_mask: None, or broadcastable to [batch, heads, queries, keys].
    """
    if query.device.type != "meta":
        return _ORIGINAL(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    backend = choose_backend(query, key, value, attn_mask, enable_gqa)
    if backend == "flash":
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if backend == "efficient":
        return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if dropout_p > 0 and attn_mask is None:
        return _math_with_dropout(query, key, value, dropout_p, is_causal, scale)
    return _ORIGINAL(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def choose_backend(query: Any, key: Any, value: Any, attn_mask: Any, enable_gqa: bool) -> str:
    """Return `flash`, `efficient` or `math`, as CUDA's selection would on Ampere and later."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    head_size = query.shape[-1]
    if query.shape[1] != key.shape[1] and not enable_gqa:
        # No fused kernel broadcasts a single key/value head (Falcon 7B).
        return "math"
    same_head_size = head_size == key.shape[-1] == value.shape[-1]
    if half and attn_mask is None and same_head_size and head_size <= _MAX_HEAD_SIZE:
        return "flash"
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    # The memory-efficient kernel knows no grouped heads (pytorch#154363) and wants head sizes
    # whose rows are aligned to 16 bytes in half precision (4 elements in fp32).
    alignment = 8 if half else 4
    aligned = head_size % alignment == 0 and value.shape[-1] % alignment == 0
    if not grouped and aligned:
        return "efficient"
    return "math"


def _flash(
    query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, scale: float | None
) -> Any:
    head_size = query.shape[-1]
    padded = -head_size % 8
    if padded:
        pad = torch.nn.functional.pad
        query, key, value = (pad(tensor, (0, padded)) for tensor in (query, key, value))
    scale = scale if scale is not None else head_size**-0.5
    out = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return out[..., :head_size] if padded else out


def _efficient(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Any:
    if mask is not None:
        mask = _aligned_mask(mask, query, key)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]


def _math_with_dropout(
    query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, scale: float | None
) -> Any:
    """The math path with CUDA's fused dropout, whose mask takes a byte; on meta it is a tensor.

    Source: aten/src/ATen/native/transformers/attention.cpp, `_scaled_dot_product_attention_math`.
    """
    root = (scale if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    query = query * root
    bias = None
    if is_causal:
        seen = torch.ones(
            query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
        ).tril()
        bias = torch.where(seen, 0.0, -torch.inf).to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ (key * root).transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    probabilities = torch._safe_softmax(scores, -1)
    del scores
    return torch.native_dropout(probabilities, dropout_p, True)[0] @ value


def _aligned_mask(mask: Any, query: Any, key: Any) -> Any:
    """Return the additive mask as CUDA's path makes it: in query's dtype, rows padded to 16."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(
            mask.logical_not(), -torch.inf
        )
    keys = mask.shape[-1]
    padding = -keys % _MASK_ALIGNMENT
    if padding:
        mask = torch.nn.functional.pad(mask, (0, padding))[..., :keys]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], keys)


_ORIGINAL = torch.nn.functional.scaled_dot_product_attention


@contextlib.contextmanager
def cuda_attention() -> Iterator[None]:
    """Make `scaled_dot_product_attention` choose as CUDA does, for meta tensors, while active."""
    torch.nn.functional.scaled_dot_product_attention = cuda_sdpa
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = _ORIGINAL


def register_flash() -> None:
    """Give transformers an attention of flash-attn's memory behaviour, without its package.

    flash_attn_func takes no mask, knows grouped heads and windows, and saves query, key, value,
    output and a logsumexp, as torch's own flash kernel does.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    AttentionInterface.register(FLASH_NAME, _flash_forward)
    AttentionMaskInterface.register(FLASH_NAME, flash_attention_mask)


def _flash_forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    causal = query.shape[2] > 1
    value_size = value.shape[-1]
    # Values are as wide as queries inside; the padded copy is gone before the output is copied.
    wide = value
    if query.shape[-1] != value_size:
        wide = torch.nn.functional.pad(value, (0, query.shape[-1] - value_size))
    if query.dtype == torch.float32:
        # flash-attn knows half precision only: transformers casts to autocast's dtype, or to the
        # model's (modeling_flash_attention_utils.py, `fa_peft_integration_check`).
        dtype = autocast_dtype() or torch.float16
        query, key, wide = (tensor.to(dtype) for tensor in (query, key, wide))
    out = _flash(query, key, wide, dropout, causal, scaling)
    del wide
    return out[..., :value_size].transpose(1, 2).contiguous(), None
