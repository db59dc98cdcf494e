"""A part of a layer that is recomputed in backward, while everything around it is kept.

Selective activation recomputation (Korthikanti et al. 2022, section 5) as torch's non-reentrant
checkpointing does it around the attention function: the inputs are kept, what autograd would save
in between is let go of, and made again when the first of it is needed.

Source: torch/utils/checkpoint.py, `_CheckpointFrame`, `_checkpoint_hook`, `_recomputation_hook`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from estimator.architecture.tape import Node, Tape, Tensor

Played = tuple[Tensor, Tensor | None]


def recomputed(
    tape: Tape, inputs: tuple[Tensor, ...], play: Callable[..., Played]
) -> tuple[Tensor, Tensor | None]:
    """Return what `play(tape, *inputs)` does, recomputed in backward where autograd records.

    `inputs` are borrowed; the checkpoint keeps them until the last of its nodes has run.
    """
    if not tape.recording:
        return play(tape, *inputs)
    first, tape.keeping = len(tape.nodes), False
    out = play(tape, *inputs)
    tape.keeping = True
    nodes = tape.nodes[first:]
    saving = [saved for *_, saved, _, _, saves in nodes if saves]
    if saving:
        for tensor in inputs:
            if tensor.storage is not None:
                tensor.storage.saved = True
        region = Region(tuple(tape.alias(x) for x in inputs), nodes, len(saving), play)
        tape.regions.update((id(saved), region) for saved in saving)
    return out


@dataclass(slots=True)
class Region:
    """The nodes of a checkpoint, `saving` of which save something, until they have run."""

    inputs: tuple[Tensor, ...]
    nodes: list[Node]
    saving: int
    play: Callable[..., Played]
    _unpacked: bool = False
    _released: int = 0

    def unpack(self, tape: Tape) -> None:
        """Play the part again, if no saved tensor of it was needed before."""
        if self._unpacked:
            return
        self._unpacked = True
        again = Tape(accumulate=tape.accumulate, stop_after=self.saving)
        # What it returns is let go of where it ends early.
        again.drop(*self.play(again, *self.inputs))
        for (*_, saved, _, _, _), (*_, made, _, _, _) in zip(self.nodes, again.nodes, strict=True):
            saved.extend(made)
        tape.events.extend(again.take_events())

    def release(self, tape: Tape) -> None:
        """One of the saving nodes lets go of what it saved; the last of them of the inputs, too."""
        self._released += 1
        if self._released == self.saving:
            tape.drop(*self.inputs)
