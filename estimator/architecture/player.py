"""Plays a run's allocations and frees, block by block, on a model of PyTorch's allocator.

The formulas count each block at the size that a request most likely gets (`expected_block`). Which
one it does get depends on what was freed before: one cut from a larger free block may keep a rest
that is too small to be split off. The player keeps both counts, and tells what lies between them.

Source: c10/cuda/CUDACachingAllocator.cpp, through estimator/allocator.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from estimator.allocator import Block, CachingAllocator
from estimator.architecture.events import Event, Storage
from estimator.architecture.run import Pass
from estimator.architecture.script import Happening, Holding, Resized

STANDING = ("weights", "optimizer_states", "workspace")
"""What is played tensor by tensor, where the run has one sum of it."""

_KNOWN = (*STANDING, "batch")
"""What is never freed by its size."""


@dataclass(slots=True)
class Seen:
    """The highest bytes handed out since some moment, the highest expected, and by component what
    blocks had beyond what was expected of them when the most was handed out."""

    allocated: int
    expected: int
    beyond: dict[str, int]


@dataclass(slots=True)
class _Entry:
    """A block in use, None once it is freed; what was expected of it, and whose it is."""

    block: Block | None
    expected: int
    kind: str


@dataclass(slots=True)
class Player:
    """Plays events on the allocator's model, and finds the block that a free means.

    A storage that another pass made (a layer's input) has no block of its own: the newest block of
    its size is freed.
    """

    allocator: CachingAllocator
    expected: int = 0
    """Bytes of the blocks in use, each at its expected size."""
    _seen: Seen = field(default_factory=lambda: Seen(0, 0, {}))
    _beyond: dict[str, int] = field(default_factory=dict)
    _alive: dict[Storage, list[_Entry]] = field(default_factory=dict)
    _by_size: dict[int, list[_Entry]] = field(default_factory=dict)
    _lumps: dict[str, list[Storage]] = field(default_factory=dict)
    _owed: dict[str, int] = field(default_factory=dict)
    _held: dict[int, _Entry] = field(default_factory=dict)
    _swallowed: set[int] = field(default_factory=set)

    @property
    def beyond(self) -> int:
        """Bytes that the blocks in use have beyond what is expected of them."""
        return self.allocator.allocated_bytes - self.expected

    def begin(self) -> Seen:
        """Return what is seen from now on; it changes until the next call."""
        self._seen = Seen(self.allocator.allocated_bytes, self.expected, dict(self._beyond))
        return self._seen

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
            elif item.component not in STANDING:
                if item.size > 0:
                    self._appear(item.component, item.size)
                else:
                    self._go(item.component, -item.size)

    def make_all(self, sizes: Iterable[int], component: str) -> None:
        """Allocate tensors one after the other."""
        for size in sizes:
            self._make(Storage(size, component))

    def make_in_turn(self, groups: Iterable[tuple[int, ...]]) -> None:
        """Allocate groups of temporaries; each goes when the next one is there."""
        before: list[Storage] = []
        for sizes in groups:
            now = [Storage(size, "temporaries") for size in sizes]
            for storage in now:
                self._make(storage)
            for storage in before:
                self._free(storage)
            before = now
        for storage in before:
            self._free(storage)

    def settle(self, component: str, expected: int) -> None:
        """So many bytes are expected of all of a component's blocks, whatever of each."""
        entries = [
            entry
            for made in self._alive.values()
            for entry in made
            if entry.kind == component and entry.block is not None
        ]
        missing = expected - sum(entry.expected for entry in entries)
        if entries:
            entries[-1].expected += missing
            self.expected += missing
            self._beyond[component] = self._beyond.get(component, 0) - missing

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
        left = {item.kind for item in self._alive} - {*STANDING, "batch", "gradients"}
        self.free_all(*left)

    def _make(self, storage: Storage) -> None:
        size = storage.requested
        block = self.allocator.allocate(size)
        if block is None:
            return
        entry = _Entry(block, storage.allocated, storage.kind)
        alive = self._alive.get(storage)
        if alive is None:
            self._alive[storage] = [entry]
        else:
            alive.append(entry)
        if entry.kind not in _KNOWN:
            same = self._by_size.get(size)
            if same is None:
                self._by_size[size] = [entry]
            else:
                same.append(entry)
        self.expected += entry.expected
        more = block.size_bytes - entry.expected
        if more:
            self._beyond[entry.kind] = self._beyond.get(entry.kind, 0) + more
        seen, allocated = self._seen, self.allocator.allocated_bytes
        if self.expected > seen.expected:
            seen.expected = self.expected
        if allocated > seen.allocated:
            seen.allocated = allocated
            seen.beyond = self._beyond.copy()

    def _release(self, entry: _Entry) -> None:
        block = entry.block
        if block is None:
            return
        entry.block = None
        self.expected -= entry.expected
        more = block.size_bytes - entry.expected
        if more:
            self._beyond[entry.kind] -= more
        self.allocator.release(block)

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
            if entry.block is not None:
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
            if item.size in self._held:
                self._release(self._held.pop(item.size))

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
        old = [entry for storage in known for entry in self._alive.pop(storage)]
        old = [entry for entry in old if entry.block is not None]
        gone = 0
        for size in item.sizes:
            self._make(Storage(size, "kv_cache"))
            if not item.at_once and gone < len(old):
                self._release(old[gone])
                gone += 1
        for entry in old[gone:]:
            self._release(entry)
