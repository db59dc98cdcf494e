"""The segments that a run takes from the driver: its blocks, played on the allocator's model.

`reserved` is no sum of formulas: it depends on the order of allocations and frees, and on which
freed block a later one finds. So the run's passes, which know that order, are played once more,
block by block, as the trace plays what it recorded. It costs ten times what the estimate itself
does, and is done only where the counter is asked for, or where blocks' rests matter (history.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from estimator.allocator import CachingAllocator, OutOfMemory
from estimator.architecture.inference import play_inference
from estimator.architecture.inventory import (
    Inventory,
    held,
    idle,
    trainable,
    weight_sizes,
    weights,
)
from estimator.architecture.optimizer import optimizer_sizes
from estimator.architecture.player import Player, Seen
from estimator.architecture.script import Script
from estimator.architecture.training import play_training
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.gpus import workspace_bytes
from estimator.spec import ModelSpec

MOST_EVENTS = 150_000
"""Few models of a hundred layers have half as many; those of thousands would take seconds."""


class TooManyEvents(GpumemError):
    """The run is too long to be played."""


@dataclass(frozen=True, slots=True)
class PhaseSeen:
    """What was seen of a phase, and what blocks had beyond the expected when it ended."""

    highest: Seen
    end_beyond: int


@dataclass(frozen=True, slots=True)
class Segments:
    """The highest bytes of segments, how often cached ones had to be given back for others, and
    whether that was not enough: then the peak is what was reserved before it failed.

    `phases` is what was seen of each phase, of training in the second step; empty if it failed.
    """

    peak_bytes: int
    retries: int
    failed: bool
    phases: dict[str, PhaseSeen] = field(default_factory=dict)


def play_segments(
    case: Case,
    spec: ModelSpec,
    items: Inventory,
    capacity_bytes: int | None = None,
    most_events: int = MOST_EVENTS,
) -> Segments:
    """Play a run on the allocator's model.

    Training is two steps: the optimizer's states, which the first one makes, lie in what its
    activations left, and the second one's find that taken.

    Args:
        capacity_bytes: what the driver can give in all; None for no limit.
        most_events: the length of a run that is not played any more.

    Raises:
        TooManyEvents: the run is too long.
    """
    scripts = _scripts(case, spec, items)
    events = sum(script.events for script in scripts)
    if events > most_events:
        raise TooManyEvents(f"{events} allocations and frees are too many to be played")
    allocator = CachingAllocator(capacity_bytes)
    player = Player(allocator)
    try:
        player.make_all(weight_sizes(case, items), "weights")
        player.settle("weights", weights(case, items).allocated_bytes)
        if case.training:
            phases = _train(player, case, spec, items, scripts)
        else:
            phases = _generate(player, case, scripts[0])
    except OutOfMemory:
        return Segments(allocator.peak_reserved_bytes, allocator.retries, failed=True)
    return Segments(allocator.peak_reserved_bytes, allocator.retries, False, phases)


def _scripts(case: Case, spec: ModelSpec, items: Inventory) -> list[Script]:
    """Return generate's run, or those of a batch that makes the gradients and of one that adds."""
    scripts = [Script()]
    if not case.training:
        play_inference(case, spec, items, scripts[0])
        return scripts
    play_training(replace(case, gradient_accumulation_steps=1), spec, items, scripts[0])
    if case.gradient_accumulation_steps > 1:
        scripts.append(Script())
        play_training(replace(case, gradient_accumulation_steps=2), spec, items, scripts[1])
    return scripts


def _generate(player: Player, case: Case, script: Script) -> dict[str, PhaseSeen]:
    player.make_all([8 * case.batch_size * case.sequence_length] * 2, "batch")
    phases: dict[str, PhaseSeen] = {}
    for phase in ("prefill", "decode"):
        if phase in script.happened:
            seen = player.begin()
            workspace = workspace_bytes(case.gpu) if phase == "prefill" else 0
            player.follow(script.happened[phase], workspace)
            phases[phase] = PhaseSeen(seen, player.beyond)
    return phases


def _train(
    player: Player, case: Case, spec: ModelSpec, items: Inventory, scripts: Sequence[Script]
) -> dict[str, PhaseSeen]:
    """Play two steps, each of these batches."""
    tensors, width = trainable(case, items)
    unused = idle(case, items)
    sizes = optimizer_sizes(case, tensors, width, spec, unused)
    gradients = held(tensors[::-1], width).allocated_bytes
    player.make_all([8 * case.batch_size * case.sequence_length] * 3, "batch")
    phases: dict[str, PhaseSeen] = {}
    for step in range(2):
        for script in scripts:
            workspace = 0 if step or script is not scripts[0] else workspace_bytes(case.gpu)
            for phase in ("forward", "backward"):
                seen = player.begin()
                player.follow(script.happened[phase], workspace)
                phases[phase] = PhaseSeen(seen, player.beyond)
            player.end_batch()
        player.settle("gradients", gradients)
        seen = player.begin()
        if not step:
            player.make_all(sizes.states, "optimizer_states")
            player.settle("optimizer_states", scripts[0].ledger["optimizer_states"])
        player.make_in_turn(sizes.temporaries)
        player.free_all("gradients")
        phases["optimizer_step"] = PhaseSeen(seen, player.beyond)
    return phases
