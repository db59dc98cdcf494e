"""What the trace makes of indexing's gradients, of grouped products and of numbers on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from profiler.trace.modules import Modules
from profiler.trace.recorder import Recorder
from profiler.trace.timeline import Timeline

ROWS, COLUMNS = 4096, 8
GRAPHS: dict[str, Callable[[Any, Any], Any]] = {
    "index": lambda x, rows: x[rows],
    "gather": lambda x, rows: x.gather(0, rows[:, None].expand(-1, COLUMNS)),
    "topk": lambda x, rows: x.topk(2, dim=-1)[0],
}


def new_recorder() -> Recorder:
    return Recorder(Timeline(), 1, 0, Modules(torch.nn.Linear(1, 1, device="meta")))


def sizes_in_backward(graph: Callable[[Any, Any], Any]) -> list[int]:
    """Return the bytes of what a traced backward pass allocates, in order."""
    x = torch.empty(ROWS, COLUMNS, device="meta", requires_grad=True)
    rows = torch.zeros(16, dtype=torch.int64, device="meta")
    recorder = new_recorder()
    with recorder:
        out = graph(x, rows)
        seed = torch.ones_like(out)
        before = len(recorder.timeline.allocations)
        out.backward(seed)
    return [a.size_bytes for a in recorder.timeline.allocations[before:]]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_gradient_of_indexing_is_put_into_zeros_in_place(name: str) -> None:
    assert sizes_in_backward(GRAPHS[name]).count(4 * ROWS * COLUMNS) == 1


@pytest.mark.parametrize("name", GRAPHS)
def test_the_engine_does_so_on_real_tensors(name: str) -> None:
    x = torch.zeros(ROWS, COLUMNS, requires_grad=True)
    out = GRAPHS[name](x, torch.zeros(16, dtype=torch.int64))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        out.sum().backward()
    names = {event.key for event in recorded.key_averages()}
    assert names & {"aten::_index_put_impl_", "aten::scatter_add_", "aten::scatter_"}
    assert not names & {"aten::index_put", "aten::scatter_add", "aten::scatter"}


def test_indices_that_may_repeat_are_sorted_first() -> None:
    """Six int64 buffers of the 16 indices, beside the gradient itself."""
    assert sizes_in_backward(GRAPHS["index"]).count(8 * 16) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_grouped_products_have_an_answer_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.empty(32, 16, device="meta", dtype=dtype, requires_grad=True)
    weight = torch.empty(4, 16, 8, device="meta", dtype=dtype, requires_grad=True)
    ends = torch.empty(4, device="meta", dtype=torch.int32)
    with new_recorder():
        out = torch.nn.functional.grouped_mm(x, weight, offs=ends)
        out.backward(torch.empty_like(out))
    assert (out.shape, out.dtype) == ((32, 8), dtype)
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape


def test_numbers_on_the_cpu_are_read_as_they_are() -> None:
    """OPT draws a number a layer to decide whether to skip it."""
    with new_recorder():
        assert not bool(torch.tensor(0.5) < torch.tensor(0.0))
