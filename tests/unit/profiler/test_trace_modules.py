"""Which module an operation belongs to: in forward, recomputation, backward, after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from profiler.trace.modules import Modules  # noqa: E402
from profiler.trace.recorder import Recorder, operation_name  # noqa: E402
from profiler.trace.timeline import Allocation, Timeline  # noqa: E402


class Block(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 16, bias=False)
        self.down = torch.nn.Linear(16, 8, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(self.up(x).relu())


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, run: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(2))
        self.run = run

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = self.run(layer, x)
        return x.exp().sum()


def plainly(layer: Any, x: Any) -> Any:
    return layer(x)


def checkpointed(layer: Any, x: Any) -> Any:
    return checkpoint(layer, x, use_reentrant=False)


def reentrantly(layer: Any, x: Any) -> Any:
    return checkpoint(layer, x, use_reentrant=True)


def made(run: Callable[[Any, Any], Any]) -> list[tuple[str, Allocation]]:
    """Train one step; return (phase, allocation) pairs."""
    with torch.device("meta"):
        net = Net(run)
        x = torch.empty(4, 8, requires_grad=True)
    timeline = Timeline()
    modules = Modules(net)
    with modules.followed(), Recorder(timeline, -1, 512, modules) as recorder:
        recorder.register([*net.parameters(), x], "weights")
        recorder.phase("forward")
        loss = net(x)
        recorder.phase("backward")
        loss.backward()
    return [(timeline.spans[one.phase].name, one) for one in timeline.allocations]


def places(pairs: list[tuple[str, Allocation]], phase: str) -> list[tuple[str | None, str | None]]:
    return [
        (one.module, one.operation)
        for name, one in pairs
        if name == phase and one.component != "workspace"
    ]


def test_forward() -> None:
    assert places(made(plainly), "forward") == [
        ("layers.0.up", "aten.mm"),
        ("layers.0", "aten.relu"),
        ("layers.0.down", "aten.mm"),
        ("layers.1.up", "aten.mm"),
        ("layers.1", "aten.relu"),
        ("layers.1.down", "aten.mm"),
        ("Net", "aten.exp"),
        ("Net", "aten.sum"),
    ]


def test_backward_is_that_of_the_forward_operation() -> None:
    backward = places(made(plainly), "backward")
    assert backward[0] == (None, "aten.ones_like")
    products = [module for module, operation in backward if operation == "aten.mm"]
    # A product for the weight's gradient and one for the input's, of each linear layer.
    assert products == [
        *["layers.1.down"] * 2,
        *["layers.1.up"] * 2,
        *["layers.0.down"] * 2,
        *["layers.0.up"] * 2,
    ]
    assert ("layers.0", "aten.threshold_backward") in backward


@pytest.mark.parametrize("run", [checkpointed, reentrantly])
def test_recomputation(run: Callable[[Any, Any], Any]) -> None:
    pairs = made(run)
    again = [(one.module, one.operation) for _, one in pairs if one.recomputed]
    assert ("layers.1.up", "aten.mm") in again
    assert again.index(("layers.1.up", "aten.mm")) < again.index(("layers.0.up", "aten.mm"))
    # What is not recomputed is what backward does without checkpointing.
    rest = [pair for pair in pairs if not pair[1].recomputed]
    products = [place for place in places(rest, "backward") if place[1] == "aten.mm"]
    plain = places(made(plainly), "backward")
    assert products == [place for place in plain if place[1] == "aten.mm"]


def test_an_error_inside_a_module_leaves_no_trace_of_it() -> None:
    class Stop(Exception):
        pass

    def fail(_: Any, __: Any) -> Any:
        raise Stop

    original = torch.nn.Module.__call__
    net = Net(fail)
    modules = Modules(net)
    with modules.followed():
        with pytest.raises(Stop):
            net(torch.empty(1, 8))
        assert modules.current() is None
    assert torch.nn.Module.__call__ is original


def test_peft_wrappers_leave_the_models_own_paths() -> None:
    wrapped = torch.nn.Module()
    wrapped.base_model = torch.nn.Module()
    wrapped.base_model.model = Net(plainly)
    modules = Modules(wrapped)
    paths = {path for _, path in modules.tensors}
    assert paths == {f"layers.{i}.{name}" for i in range(2) for name in ("up", "down")}
    assert modules.owner(wrapped.base_model.model.layers[1].up.weight) == "layers.1.up"
    assert modules.owner(torch.empty(1)) is None


def test_operations_go_by_their_name_without_the_overload() -> None:
    assert operation_name(torch.ops.aten.add.Tensor) == "aten.add"
    assert operation_name(torch.ops.aten.mm.default) == "aten.mm"
