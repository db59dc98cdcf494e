"""What layers read beside their input: their own inputs by token, and earlier layers' keys and
values (Gemma 4), or the embeddings (Zamba). Each layer is played on a tape of its own; this carries
such tensors between them.

In backward their gradients wait from the last layer that reads a tensor to where it was made, and
each layer adds its own to what is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from estimator.architecture.events import Storage
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention, Layer, Shared

TOKEN_INPUTS = "token inputs"
"""By what name layers find their own inputs among `Tape.outside`."""


EMBEDDED = "embeddings"
"""By what name layers find the embeddings (Zamba)."""


def state_names(spec: Attention) -> tuple[str, str]:
    """Return by what names layers of one window find keys and values among `Tape.outside`."""
    return f"keys of window {spec.window}", f"values of window {spec.window}"


@dataclass(frozen=True, slots=True)
class Outside:
    """A tensor of `Tape.outside` by its name, `count` elements of `width` bytes."""

    name: str
    count: int
    width: int
    grad: bool


def outside_of(tape: Tape) -> tuple[Outside, ...]:
    """Return what layers after those of a tape find."""
    found = tape.outside.items()
    return tuple(Outside(name, one.count, one.width, one.grad) for name, one in found)


def tensors(outside: Iterable[Outside]) -> dict[str, Tensor]:
    """Return the tensors, which another tape made and will free."""
    return {
        one.name: Tensor(one.count, one.width, one.grad, Storage(one.count * one.width, None))
        for one in outside
    }


def pending(tape: Tape, layer: Layer) -> dict[int, Storage]:
    """Return the gradients that later layers' backward left for what they read of a layer, or
    beside it, by `id` of the tensor; a tape has played the layer."""
    if layer.shared is not None:
        return _of_embeddings(tape, layer.shared)
    names: tuple[str, ...] = ()
    if layer.token_inputs is not None and not layer.token_inputs.last:
        names = (TOKEN_INPUTS,)
    block = layer.attention
    if block.states_read or (block.reads_states and not block.reads_last):
        names += state_names(block)
    read = (tape.outside[name] for name in names)
    return {id(one): Storage(one.size, None) for one in read if one.grad}


def _of_embeddings(tape: Tape, shared: Shared) -> dict[int, Storage]:
    """The embeddings' gradient begins as a view of the last reader's, which read them beside the
    hidden states; the second's makes a sum of its own."""
    read = tape.outside[EMBEDDED]
    if not (read.grad and shared.readers):
        return {}
    return {id(read): Storage(read.size * (2 if shared.readers == 1 else 1), None)}
