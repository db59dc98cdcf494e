"""The segments that a run takes from the driver: its blocks, played on the allocator's model.

`reserved` is no sum of formulas: it depends on the order of allocations and frees, and on which
freed block a later one finds. So the run's passes, which know that order, are played once more,
block by block, as the trace plays what it recorded. It costs ten times what the estimate itself
does, and is done only where the counter is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from estimator.allocator import Block, CachingAllocator, OutOfMemory
from estimator.architecture.events import Event, Storage
from estimator.architecture.inference import play_inference
from estimator.architecture.inventory import Inventory, trainable, weight_sizes
from estimator.architecture.optimizer import optimizer_sizes
from estimator.architecture.run import Pass
from estimator.architecture.script import Happening, Holding, Resized, Script
from estimator.architecture.training import play_training
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.gpus import workspace_bytes
from estimator.spec import ModelSpec

_STANDING = ("weights", "optimizer_states", "workspace")
"""What is played tensor by tensor, where the run has one sum of it."""


MOST_EVENTS = 300_000
"""A model of a hundred layers has half as many; those of thousands would take seconds."""


class TooManyEvents(GpumemError):
    """The run is too long to be played."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The highest bytes of segments, how often cached ones had to be given back for others, and
    whether that was not enough: then the peak is what was reserved before it failed."""

    peak_bytes: int
    retries: int
    failed: bool


def play_segments(
    case: Case, spec: ModelSpec, items: Inventory, capacity_bytes: int | None = None
) -> Segments:
    """Play a run on the allocator's model.

    Training is two steps: the optimizer's states, which the first one makes, lie in what its
    activations left, and the second one's find that taken.

    Args:
        capacity_bytes: what the driver can give in all; None for no limit.

    Raises:
        TooManyEvents: the model has thousands of layers.
    """
    allocator = CachingAllocator(capacity_bytes)
    player = _Player(allocator)
    try:
        player.make_all(weight_sizes(case, items), "weights")
        (_train if case.training else _generate)(player, case, spec, items)
    except OutOfMemory:
        return Segments(allocator.peak_reserved_bytes, allocator.retries, failed=True)
    return Segments(allocator.peak_reserved_bytes, allocator.retries, failed=False)


def _generate(player: _Player, case: Case, spec: ModelSpec, items: Inventory) -> None:
    script = Script()
    play_inference(case, spec, items, script)
    _check([script])
    player.make_all([8 * case.batch_size * case.sequence_length] * 2, "batch")
    player.follow(script.happened["prefill"], workspace_bytes(case.gpu))
    player.follow(script.happened.get("decode", ()))


def _train(player: _Player, case: Case, spec: ModelSpec, items: Inventory) -> None:
    """Play two steps, each of a batch that makes the gradients and one that adds to them."""
    scripts = []
    for accumulation in range(1, min(2, case.gradient_accumulation_steps) + 1):
        scripts.append(Script())
        batches = replace(case, gradient_accumulation_steps=accumulation)
        play_training(batches, spec, items, scripts[-1])
    _check(scripts)
    sizes = optimizer_sizes(case, *trainable(case, items), spec)
    player.make_all([8 * case.batch_size * case.sequence_length] * 3, "batch")
    for step in range(2):
        for script in scripts:
            workspace = 0 if step or script is not scripts[0] else workspace_bytes(case.gpu)
            for phase in ("forward", "backward"):
                player.follow(script.happened[phase], workspace)
            player.end_batch()
        if not step:
            player.make_all(sizes.states, "optimizer_states")
        player.make_in_turn(sizes.temporaries)
        player.free_all("gradients")


def _check(scripts: Sequence[Script]) -> None:
    events = sum(script.events for script in scripts)
    if events > MOST_EVENTS:
        raise TooManyEvents(f"{events} allocations and frees are too many to be played")


class _Player:
    """Plays events on the allocator's model, and finds the block that a free means.

    A storage that another pass made (a layer's input) has no block of its own: the newest block of
    its size is freed.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        self._allocator = allocator
        self._alive: dict[Storage, list[list[Block]]] = {}
        self._by_size: dict[int, list[list[Block]]] = {}
        self._lumps: dict[str, list[Storage]] = {}
        self._owed: dict[str, int] = {}
        self._held: dict[int, list[Block]] = {}
        self._swallowed: set[int] = set()

    def follow(self, happenings: Iterable[Happening], workspace: int = 0) -> None:
        """Play what happened between two moments; the first pass is followed by a workspace."""
        for item in happenings:
            if isinstance(item, Pass):
                self._play(item.events)
                if workspace:
                    self.make_all([workspace], "workspace")
                    workspace = 0
            elif isinstance(item, Resized):
                self._resize(item)
            elif isinstance(item, Holding):
                self._hold(item)
            elif item.component not in _STANDING:
                if item.size > 0:
                    self._appear(item.component, item.size)
                else:
                    self._go(item.component, -item.size)

    def make_all(self, sizes: Iterable[int], component: str) -> None:
        """Allocate tensors one after the other."""
        for size in sizes:
            self._make(Storage(size, component))

    def make_in_turn(self, groups: Iterable[tuple[int, ...]]) -> None:
        """Allocate groups of tensors; each goes when the next one is there."""
        before: list[Block | None] = []
        for sizes in groups:
            now = [self._allocator.allocate(size) for size in sizes]
            for block in before:
                self._allocator.release(block)
            before = now
        for block in before:
            self._allocator.release(block)

    def free_all(self, *components: str) -> None:
        """Free every block of these components."""
        for storage in [item for item in self._alive if item.kind in components]:
            for entry in self._alive.pop(storage):
                self._release(entry)

    def end_batch(self) -> None:
        """Nothing but what stands and the gradients outlives a batch's graph."""
        self._lumps.clear()
        self._owed.clear()
        self._by_size.clear()
        left = {item.kind for item in self._alive} - {*_STANDING, "batch", "gradients"}
        self.free_all(*left)

    def _make(self, storage: Storage) -> None:
        block = self._allocator.allocate(storage.requested)
        if block is not None:
            entry = [block]
            self._alive.setdefault(storage, []).append(entry)
            self._by_size.setdefault(storage.requested, []).append(entry)

    def _free(self, storage: Storage) -> None:
        entries = self._alive.get(storage)
        if entries:
            self._release(entries.pop())
            if not entries:
                del self._alive[storage]
            return
        if storage.requested in self._swallowed:
            self._swallowed.remove(storage.requested)
            return
        entries = self._by_size.get(storage.requested)
        while entries:
            entry = entries.pop()
            if entry:
                self._release(entry)
                return

    def _hold(self, item: Holding) -> None:
        if item.begins:
            entries = self._by_size.get(item.size)
            if entries:
                self._held[item.size] = entries.pop()
                self._swallowed.add(item.size)
        else:
            self._swallowed.discard(item.size)
            self._release(self._held.pop(item.size, []))

    def _release(self, entry: list[Block]) -> None:
        if entry:
            self._allocator.release(entry.pop())

    def _play(self, events: list[Event]) -> None:
        for storage, sign in events:
            if sign > 0:
                self._make(storage)
            else:
                self._free(storage)

    def _appear(self, component: str, size: int) -> None:
        lump = Storage(size, component)
        self._lumps.setdefault(component, []).append(lump)
        self._make(lump)

    def _go(self, component: str, size: int) -> None:
        """Free bytes that appeared as a whole, or of the component's newest storages."""
        lumps = self._lumps.get(component, [])
        for lump in lumps:
            if lump.requested == size:
                lumps.remove(lump)
                self._free(lump)
                return
        owed = self._owed.get(component, 0) + size
        for storage in reversed(lumps):
            if storage.requested <= owed:
                owed -= storage.requested
                lumps.remove(storage)
                self._free(storage)
        if component in ("kv_cache", "logits"):
            for storage in reversed([item for item in self._alive if item.kind == component]):
                while owed >= storage.requested and storage in self._alive:
                    owed -= storage.requested
                    self._free(storage)
        self._owed[component] = owed

    def _resize(self, item: Resized) -> None:
        """Make the cache's tensors anew, each before the old one goes."""
        known = [storage for storage in self._alive if storage.kind == "kv_cache"]
        old = [entry for storage in known for entry in self._alive.pop(storage) if entry]
        gone = 0
        for size in item.sizes:
            self._make(Storage(size, "kv_cache"))
            if not item.at_once and gone < len(old):
                self._release(old[gone])
                gone += 1
        for entry in old[gone:]:
            self._release(entry)
