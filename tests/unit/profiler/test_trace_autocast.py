"""Autocast of meta tensors does what torch's own does: its lists, its cache, where it is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama import modeling_llama

from profiler.trace.autocast import autocast_context, replaced_functions
from profiler.trace.cuda_paths import as_on_cuda

F = torch.nn.functional
HALF = torch.bfloat16


class Casts(TorchDispatchMode):  # type: ignore[misc]
    """Counts copies to another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def meta(*shape: int, dtype: Any = HALF) -> Any:
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def replaced() -> Iterator[None]:
    with as_on_cuda(), replaced_functions(HALF):
        yield


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_casts_of_weights_are_remembered_as_on_other_devices(
    requires_grad: bool, grad_mode: bool
) -> None:
    counts = []
    for device in ("cpu", "meta"):
        weight = torch.nn.Parameter(torch.empty(8, 8, device=device), requires_grad)
        x = torch.empty(4, 8, dtype=HALF, device=device)
        with torch.autocast(device, dtype=HALF), torch.set_grad_enabled(grad_mode):
            with Casts() as casts:
                for _ in range(3):
                    F.linear(x, weight)
            counts.append(casts.count)
    assert counts[0] == counts[1] == (1 if requires_grad else 3)


def test_sums_and_softmax_give_fp32_without_a_copy_of_their_input() -> None:
    with autocast_context(HALF), Casts() as casts:
        assert meta(4, 8).sum(-1).dtype == torch.float32
        assert torch.sum(meta(4, 8)).dtype == torch.float32
        assert torch.linalg.vector_norm(meta(4, 8)).dtype == torch.float32
    assert casts.count == 0
    with autocast_context(torch.float16), Casts() as casts:
        assert F.softmax(meta(4, 8, dtype=torch.float16), -1).dtype == torch.float32
    assert casts.count == 0


def test_a_named_dtype_is_kept() -> None:
    with autocast_context(HALF):
        assert F.softmax(meta(4, 8), -1, dtype=HALF).dtype == HALF
        assert meta(4, 8).sum(-1, dtype=HALF).dtype == HALF
        assert torch.softmax(meta(4, 8), -1, HALF).dtype == HALF
        assert meta(4, 8, dtype=torch.int64).sum().dtype == torch.int64


def test_einsum_multiplies_in_half_precision() -> None:
    a, b = meta(4, 8, dtype=torch.float32), meta(8, 2)
    with autocast_context(HALF):
        assert torch.einsum("ij,jk->ik", a, b).dtype == HALF
        assert torch.einsum("ij,jk->ik", [a, b]).dtype == HALF


def test_transformers_can_switch_it_off_for_meta_tensors_too() -> None:
    x, y = meta(2, 4, 8, dtype=torch.float32), meta(2, 8, 4, dtype=torch.float32)
    with autocast_context(HALF):
        with modeling_llama.maybe_autocast(device_type="meta", enabled=False):
            assert (x @ y).dtype == torch.float32
        assert (x @ y).dtype == HALF
    with modeling_llama.maybe_autocast(device_type="meta", enabled=False):
        assert (x @ y).dtype == torch.float32
