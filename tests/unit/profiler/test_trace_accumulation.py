"""Sums of gradients: what the trace decides on meta is what the engine does on real tensors.

Where a tensor is used twice, the engine adds in place (`aten::add_`) or makes a third tensor
(`aten::add`). On the CPU the profiler shows which; on meta the recorder has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.trace import accumulation

F = torch.nn.functional
Graph = Callable[[Any, Any], Any]


class _Decisions(TorchDispatchMode):  # type: ignore[misc]
    """Asks as the recorder asks, at the same depth of calls."""

    def __init__(self) -> None:
        super().__init__()
        accumulation.unshared_counts()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if accumulation.is_in_place(func, args, kwargs):
            self.made.append("in place")
            return args[0]
        summing = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        if summing and func is torch.ops.aten.add.Tensor:
            self.made.append("new")
        return func(*args, **(kwargs or {}))


def inputs(device: str) -> tuple[Any, Any]:
    x = torch.empty(2, 3, 8, device=device).fill_(0.5).requires_grad_()
    return x, torch.empty(8, 8, device=device).fill_(0.1).requires_grad_()


def on_meta(graph: Graph) -> list[str]:
    x, weight = inputs("meta")
    mode = _Decisions()
    with mode:
        graph(x, weight).sum().backward()
    return mode.made


def by_the_engine(graph: Graph) -> list[str]:
    x, weight = inputs("cpu")
    loss = graph(x, weight).sum()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        loss.backward()
    return list(_sums(recorded.events()))


def _sums(events: Any) -> Iterator[str]:
    """Sums made by the engine itself, not by a node's own formula, in order."""
    names = {"aten::add_": "in place", "aten::add": "new"}
    for event in sorted(events, key=lambda event: event.time_range.start):
        parent = event.cpu_parent
        by_engine = parent is not None and parent.name.startswith("autograd::engine::evaluate")
        if event.name in names and by_engine:
            yield names[event.name]


def two_products(x: Any, weight: Any) -> Any:
    return x * 3 + x * 5


def three_products(x: Any, weight: Any) -> Any:
    return x * 2 + x * 3 + x * 5


def doubled(x: Any, weight: Any) -> Any:
    return x + x


def residual(x: Any, weight: Any) -> Any:
    return x + torch.tanh(x)


def two_residuals(x: Any, weight: Any) -> Any:
    hidden = x * 1
    hidden = hidden + torch.tanh(hidden)
    return hidden + torch.sigmoid(hidden)


def linears(x: Any, weight: Any) -> Any:
    hidden = x * 1
    return F.linear(hidden, weight) + F.linear(hidden, weight)


def three_linears(x: Any, weight: Any) -> Any:
    hidden = x * 1
    query, key, value = (F.linear(hidden, weight) for _ in range(3))
    return query * key * value


def linear_with_residual(x: Any, weight: Any) -> Any:
    hidden = x * 1
    return hidden + F.linear(torch.tanh(hidden), weight)


def transposed(x: Any, weight: Any) -> Any:
    hidden = x * 1
    return (hidden.transpose(1, 2) * 2).sum() + (hidden * 3).sum()


def sliced(x: Any, weight: Any) -> Any:
    hidden = x * 1
    first, second = hidden[..., :4], hidden[..., 4:]
    return torch.cat((-second, first), dim=-1) * 2 + hidden * 3


def expanded(x: Any, weight: Any) -> Any:
    hidden = x * 1
    row = hidden.pow(2).mean(-1, keepdim=True)
    return hidden * torch.rsqrt(row + 1e-6)


def split(x: Any, weight: Any) -> Any:
    hidden = x * 1
    first, second = hidden.split(4, dim=-1)
    return first * second + first


def cast(x: Any, weight: Any) -> Any:
    hidden = x * 1
    return hidden.to(torch.bfloat16).to(torch.float32) + hidden * 2


def tied(x: Any, weight: Any) -> Any:
    table = weight * 1
    return F.linear(F.linear(x, table), table)


def block(x: Any, weight: Any) -> Any:
    """A small pre-norm layer: norm, projections, gated product, two residuals."""

    def norm(hidden: Any) -> Any:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)

    hidden = x * 1
    normed = norm(hidden)
    query, key, value = (F.linear(normed, weight) for _ in range(3))
    scores = torch.softmax(query @ key.transpose(1, 2), dim=-1)
    hidden = hidden + F.linear(scores @ value, weight)
    normed = norm(hidden)
    return hidden + F.linear(F.silu(F.linear(normed, weight)) * F.linear(normed, weight), weight)


GRAPHS = (
    two_products,
    three_products,
    doubled,
    residual,
    two_residuals,
    linears,
    three_linears,
    linear_with_residual,
    transposed,
    sliced,
    expanded,
    split,
    cast,
    tied,
    block,
)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_meta_decides_as_the_engine_does(graph: Graph) -> None:
    real = by_the_engine(graph)
    assert real, "the graph sums no gradients"
    assert on_meta(graph) == real


def test_both_kinds_of_sums_are_among_the_graphs() -> None:
    made = {decision for graph in GRAPHS for decision in by_the_engine(graph)}
    assert made == {"in place", "new"}


def test_a_forward_addition_is_never_taken_for_a_sum_of_gradients() -> None:
    mode = _Decisions()
    with mode, torch.no_grad():
        x = torch.empty(4, device="meta")
        y = x + 1
        z = torch.add(x, y)
    assert z is not x
    assert mode.made == []
