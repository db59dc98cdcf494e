"""While a trace runs, torch takes for meta tensors the paths that it takes for CUDA tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from profiler.trace.cuda_paths import as_on_cuda

F = torch.nn.functional


def meta(*shape: int, dtype: Any = torch.float32, grad: bool = False) -> Any:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


def test_dropout_saves_a_mask_of_one_byte_an_element() -> None:
    with as_on_cuda():
        out = F.dropout(meta(4, 8, grad=True), 0.1)
    saved = out.grad_fn._saved_result1
    assert saved.dtype == torch.bool
    assert saved.shape == (4, 8)


@pytest.mark.parametrize(
    ("p", "training"), [(0.0, True), (1.0, True), (0.5, False)], ids=["none", "all", "eval"]
)
def test_dropout_that_drops_nothing_or_all_takes_no_mask(p: float, training: bool) -> None:
    with as_on_cuda():
        out = F.dropout(meta(4, 8, grad=True), p, training)
    assert "NativeDropout" not in type(out.grad_fn).__name__


def test_dropout_of_real_tensors_is_torchs_own() -> None:
    torch.manual_seed(0)
    expected = F.dropout(torch.ones(64), 0.5)
    torch.manual_seed(0)
    with as_on_cuda():
        assert torch.equal(F.dropout(torch.ones(64), 0.5), expected)


def converted(dtype: Any) -> bool:
    """Whether an fp32 softmax of `dtype` copies its input to fp32 first."""
    with as_on_cuda():
        out = F.softmax(meta(4, 8, dtype=dtype, grad=True), dim=-1, dtype=torch.float32)
    assert out.dtype == torch.float32
    return "ToCopy" in type(out.grad_fn.next_functions[0][0]).__name__


def test_softmax_of_fp16_to_fp32_is_one_kernel() -> None:
    assert not converted(torch.float16)
    assert converted(torch.bfloat16)


def test_modules_see_the_replaced_functions() -> None:
    with as_on_cuda():
        out = torch.nn.Dropout(0.1)(meta(4, 8, grad=True))
    assert "NativeDropout" in type(out.grad_fn).__name__


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {}], ids=str)
def test_adamw_steps_on_meta_tensors(options: dict[str, bool]) -> None:
    parameter = torch.nn.Parameter(meta(16))
    parameter.grad = meta(16)
    with as_on_cuda():
        optimizer = torch.optim.AdamW([parameter], **options)
        optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].shape == (16,)


def test_everything_is_put_back_even_after_an_error() -> None:
    from torch.optim import adam
    from torch.utils import _foreach_utils

    def seen() -> tuple[Any, ...]:
        return (
            F.dropout,
            F.softmax,
            F.scaled_dot_product_attention,
            _foreach_utils._get_foreach_kernels_supported_devices,
            adam._get_fused_kernels_supported_devices
            if hasattr(adam, "_get_fused_kernels_supported_devices")
            else None,
        )

    def fail() -> None:
        with as_on_cuda():
            assert seen() != before
            raise RuntimeError("stop")

    before = seen()
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen() == before
