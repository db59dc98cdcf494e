"""Which module runs: the forward operation's, and in backward that of the forward operation
whose gradient is computed.

Calls of modules are followed by a replaced `Module.__call__` rather than by hooks: checkpointing
leaves a block by an exception when it has recomputed enough, and hooks would not see that. Autograd
numbers its nodes in the order of the forward pass, so it is enough to note the number at which
each module begins and ends.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch

_WRAPPER = "base_model.model"
"""Where peft puts the model that it wraps."""


class Modules:
    """The modules of a model by their paths, and the path of the one that runs now.

    A root has no path and goes by its class name. A module that is not the model's (a loss, a
    wrapper) goes by its caller's.
    """

    def __init__(self, model: Any) -> None:
        self._paths = {
            id(module): _shown(path) or type(module).__name__
            for path, module in model.named_modules()
        }
        self.tensors: list[tuple[Any, str]] = [
            (tensor, self._paths[id(module)])
            for module in model.modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        self._owners = {id(tensor): path for tensor, path in reversed(self.tensors)}
        self._running: list[str | None] = [None]
        self._numbers: list[int] = [0]
        self._ran: list[str | None] = [None]

    def place_tensors(self, recorder: Any) -> None:
        """Tell a recorder which module has each tensor, and let go of them: a buffer that the
        model replaces (CTRL's table of positions) is then freed as it would be."""
        for tensor, path in self.tensors:
            recorder.place([tensor], path)
        self.tensors.clear()

    def owner(self, parameter: Any) -> str | None:
        """Return the path of the module that has a parameter (the first, where it is tied)."""
        return self._owners.get(id(parameter))

    def current(self) -> str | None:
        """Return the path of the module at work, in forward, recomputation or backward."""
        running = self._running[-1]
        if running is not None:
            return running
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        number = node._sequence_nr()
        if number > self._numbers[-1] and hasattr(node, "variable"):
            # Accumulation into a parameter's gradient comes before all else, and has no number.
            return self.owner(node.variable)
        return self._ran[bisect_right(self._numbers, number) - 1]

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the calls of modules while active."""
        original = torch.nn.Module.__call__
        paths, running, note = self._paths, self._running, self._note

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            running.append(paths.get(id(module), running[-1]))
            note()
            try:
                return original(module, *args, **kwargs)
            finally:
                running.pop()
                note()

        torch.nn.Module.__call__ = call
        try:
            yield
        finally:
            torch.nn.Module.__call__ = original

    def _note(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        if self._numbers[-1] == number:
            self._ran[-1] = self._running[-1]
        else:
            self._numbers.append(number)
            self._ran.append(self._running[-1])


def _shown(path: str) -> str:
    """Return a module's path in the model itself; of a model and its wrappers, nothing."""
    return "" if _WRAPPER.startswith(path) else path.removeprefix(_WRAPPER + ".")
