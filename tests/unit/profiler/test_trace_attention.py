"""Which attention kernel a trace runs for meta tensors, and what that kernel saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from profiler.trace.attention import choose_backend, cuda_attention, cuda_sdpa

F = torch.nn.functional
BF16, FP32 = torch.bfloat16, torch.float32


def qkv(
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int = 64,
    dtype: Any = BF16,
    queries: int = 32,
    value_dim: int | None = None,
) -> tuple[Any, Any, Any]:
    kv_heads = heads if kv_heads is None else kv_heads
    sizes = ((heads, queries, head_dim), (kv_heads, 32, head_dim))
    query, key = (
        torch.empty(2, *size, dtype=dtype, device="meta", requires_grad=True) for size in sizes
    )
    value = torch.empty(
        2, kv_heads, 32, value_dim or head_dim, dtype=dtype, device="meta", requires_grad=True
    )
    return query, key, value


def mask() -> Any:
    return torch.ones(2, 1, 32, 32, dtype=torch.bool, device="meta")


@pytest.fixture(autouse=True)
def replaced() -> Iterator[None]:
    with cuda_attention():
        yield


@pytest.mark.parametrize(
    ("shape", "masked", "grouped", "kernel"),
    [
        ({}, False, False, "flash"),
        ({"dtype": torch.float16}, False, False, "flash"),
        ({"head_dim": 256}, False, False, "flash"),
        ({"head_dim": 100}, False, False, "flash"),
        ({"kv_heads": 2}, False, True, "flash"),
        ({"head_dim": 264}, False, False, "efficient"),
        ({"value_dim": 32}, False, False, "efficient"),
        ({}, True, False, "efficient"),
        ({"dtype": FP32}, False, False, "efficient"),
        ({"dtype": FP32, "head_dim": 100}, False, False, "efficient"),
        # What grouped heads, and rows that are not aligned, leave to the math path.
        ({"dtype": FP32, "kv_heads": 2}, False, True, "math"),
        ({"head_dim": 100}, True, False, "math"),
        ({"dtype": FP32, "head_dim": 30}, False, False, "math"),
        ({"kv_heads": 2}, True, True, "math"),
        ({"head_dim": 264, "kv_heads": 2}, False, True, "math"),
        # Heads that are grouped without saying so (Falcon): no fused kernel broadcasts.
        ({"kv_heads": 1}, False, False, "math"),
        ({"kv_heads": 1}, True, False, "math"),
    ],
)
def test_the_kernel_by_shape_and_mask(
    shape: dict[str, Any], masked: bool, grouped: bool, kernel: str
) -> None:
    query, key, value = qkv(**shape)
    assert choose_backend(query, key, value, mask() if masked else None, grouped) == kernel


def test_the_formulas_choose_the_same_kernels() -> None:
    from dataclasses import replace

    from estimator.architecture.context import training_context
    from estimator.architecture.kernels import kernel
    from estimator.case import Case
    from estimator.config_source import load_config
    from estimator.families import parse_spec

    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    case = Case.from_dict({"model": config, "task": "training"})
    spec = parse_spec(load_config(config)).layers[0].attention
    for dtype, name in ((BF16, "bfloat16"), (FP32, "float32")):
        for head_dim in (30, 64, 100, 256, 264):
            for kv_heads in (2, 4):
                query, key, value = qkv(kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
                # transformers repeats the heads itself where the head is large.
                grouped = kv_heads < 4 and head_dim <= 256
                if not grouped:
                    key = value = query
                real = choose_backend(query, key, value, None, grouped)
                ctx = training_context(replace(case, dtype=name))
                ours = kernel(replace(spec, kv_heads=kv_heads, head_dim=head_dim), ctx)
                assert ours == real, (name, head_dim, kv_heads)


def operation(out: Any) -> str:
    """The fused kernel behind an output: the first that is one, walking back."""
    node = out.grad_fn
    while node is not None and "ScaledDotProduct" not in type(node).__name__:
        node = node.next_functions[0][0] if node.next_functions else None
    return "math" if node is None else type(node).__name__


def test_each_kernel_is_run_by_torchs_own_operation() -> None:
    flash = F.scaled_dot_product_attention(*qkv(), is_causal=True)
    assert operation(flash).startswith("ScaledDotProductFlashAttention")
    efficient = F.scaled_dot_product_attention(*qkv(dtype=FP32), is_causal=True)
    assert operation(efficient).startswith("ScaledDotProductEfficientAttention")
    grouped = F.scaled_dot_product_attention(
        *qkv(kv_heads=2, dtype=FP32), is_causal=True, enable_gqa=True
    )
    assert operation(grouped) == "math"
    for out in (flash, efficient, grouped):
        assert out.shape == (2, 4, 32, 64)


def test_flash_saves_a_logsumexp_and_no_scores() -> None:
    out = F.scaled_dot_product_attention(*qkv(), is_causal=True)
    saved = out.grad_fn._saved_logsumexp
    assert saved.shape == (2, 4, 32)
    assert saved.dtype == FP32


def test_head_sizes_are_padded_to_eights_and_cut_again() -> None:
    out = F.scaled_dot_product_attention(*qkv(head_dim=100), is_causal=True)
    assert out.shape[-1] == 100
    assert out.untyped_storage().nbytes() == 2 * 4 * 32 * 104 * 2


def test_a_boolean_mask_becomes_additive_and_aligned() -> None:
    query, key, value = qkv(queries=32)
    short = torch.ones(2, 1, 32, 20, dtype=torch.bool, device="meta")
    out = F.scaled_dot_product_attention(query, key[:, :, :20], value[:, :, :20], attn_mask=short)
    bias = out.grad_fn._saved_attn_bias
    assert bias.dtype == BF16
    assert bias.shape == (2, 4, 32, 20)
    # Rows of 20 are kept as rows of 32, once for all heads.
    assert bias.untyped_storage().nbytes() == 2 * 32 * 32 * 2


def test_without_gradients_no_logsumexp_is_kept_for_backward() -> None:
    with torch.no_grad():
        out = cuda_sdpa(*qkv(dtype=FP32), is_causal=True)
    assert out.grad_fn is None


def test_real_tensors_take_the_original_function() -> None:
    query = torch.ones(1, 1, 2, 8)
    out = F.scaled_dot_product_attention(query, query, query)
    assert torch.equal(out, query)


def test_the_function_is_put_back() -> None:
    assert F.scaled_dot_product_attention is cuda_sdpa
    with pytest.raises(RuntimeError), cuda_attention():
        raise RuntimeError
    assert F.scaled_dot_product_attention is not cuda_sdpa
