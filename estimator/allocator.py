"""A model of PyTorch's CUDA caching allocator: pure arithmetic, no torch.

It is fed allocations and frees in program order and yields what `torch.cuda.memory_stats()`
would: requested, allocated and reserved bytes, now and at their peaks.

Source: c10/cuda/CUDACachingAllocator.cpp (`round_size`, `get_allocation_size`, `should_split`,
`get_free_block`, `try_allocate_expandable_block`, `free_block`, `release_cached_blocks`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from estimator.units import MIB, round_up

MIN_BLOCK_BYTES = 512
SMALL_BYTES = 1 * MIB
SMALL_SEGMENT_BYTES = 2 * MIB
MIN_LARGE_BYTES = 10 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
ROUND_LARGE_BYTES = 2 * MIB

_PAGE_BYTES = {True: SMALL_SEGMENT_BYTES, False: LARGE_SEGMENT_BYTES}
_POOL_START = {True: 0, False: 2**60}


class OutOfMemory(Exception):
    """The modelled card is full, even after what was wholly free was given back.

    `asked_bytes` is what PyTorch's message says that it "tried to allocate": the segment from
    which the block would be cut, which is larger than the tensor.
    """

    def __init__(self, asked_bytes: int, reserved_bytes: int) -> None:
        super().__init__(f"tried to allocate {asked_bytes} bytes")
        self.asked_bytes = asked_bytes
        self.reserved_bytes = reserved_bytes


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment: `size_bytes` at `address`, free or handed out for `requested_bytes`."""

    address: int
    size_bytes: int
    small: bool
    free: bool = True
    requested_bytes: int = 0
    previous: Block | None = None
    next: Block | None = None


def round_block(size_bytes: int) -> int:
    """Return the block size for a request: multiples of 512 B, at least one."""
    return max(MIN_BLOCK_BYTES, round_up(size_bytes, MIN_BLOCK_BYTES))


@lru_cache(maxsize=1 << 14)
def expected_block(size_bytes: int) -> int:
    """Return the block that a request most likely gets, without playing the allocator.

    A request of 10 MiB or more that finds no cached block takes a segment rounded up to 2 MiB, and
    a rest of up to 1 MiB is not split off: it counts as allocated, and is found again by the next
    request of that size. Requests above 1 MiB share segments of 20 MiB, of which the last block
    gets such a rest: each is given its share of it, as if all were of its size. Exact for the
    first of its size, or the first segment of them; later ones may be cut from larger blocks.
    """
    block = -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
    if block <= SMALL_BYTES:
        return block
    if block < MIN_LARGE_BYTES:
        count = LARGE_SEGMENT_BYTES // block
        left = LARGE_SEGMENT_BYTES - count * block
        return block + left // count if left <= SMALL_BYTES else block
    rest = -block % ROUND_LARGE_BYTES
    return block + rest if rest <= SMALL_BYTES else block


def segment_size(block_bytes: int) -> int:
    """Return what is taken from the driver when no cached block fits."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return round_up(block_bytes, ROUND_LARGE_BYTES)


def bytes_of_blocks(sizes: Iterable[int]) -> int:
    """Return what requests of more than 1 MiB get, made one after the other and never freed.

    As `CachingAllocator` does it, whose blocks and addresses nobody asks for: of what is free, the
    rests of segments, only sizes matter.
    """
    rests: list[int] = []
    total = 0
    for size in sizes:
        wanted = -(-size // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        index = bisect_left(rests, wanted)
        block = rests.pop(index) if index < len(rests) else segment_size(wanted)
        rest = block - wanted
        if rest > SMALL_BYTES:
            insort(rests, rest)
            block = wanted
        total += block
    return total


class CachingAllocator:
    """The allocator's state on one device and one stream.

    Args:
        capacity_bytes: what the driver can give in all; None for no limit. Where it is short,
            wholly free segments are given back once (`retries`), then `OutOfMemory` is raised.
        expandable: model `expandable_segments:True`: one segment a pool, which grows at its end
            by pages of 2 MiB (small blocks) or 20 MiB, and gives back every page that is wholly
            free. Any rest of 512 B or more is split off. New pages go to the end, where PyTorch
            would first fill the holes that pages left: only where blocks lie can differ.
    """

    def __init__(self, capacity_bytes: int | None = None, expandable: bool = False) -> None:
        self.capacity_bytes = capacity_bytes
        self.expandable = expandable
        self.requested_bytes = 0
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_requested_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.retries = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._next_address = 0
        self._last: dict[bool, Block | None] = {True: None, False: None}

    def allocate(self, size_bytes: int) -> Block | None:
        """Hand out a block for `size_bytes`; None for 0 bytes, for which nothing is allocated.

        Raises:
            OutOfMemory: when the capacity does not suffice.
        """
        if size_bytes == 0:
            return None
        wanted = -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        small = wanted <= SMALL_BYTES
        block = self._best_fit(wanted, small)
        if block is None:
            block = (self._grow if self.expandable else self._new_segment)(wanted, small)
        remaining = block.size_bytes - wanted
        if remaining >= MIN_BLOCK_BYTES if small or self.expandable else remaining > SMALL_BYTES:
            rest = Block(block.address + wanted, remaining, small, True, 0, block, block.next)
            if block.next is not None:
                block.next.previous = rest
            block.next = rest
            block.size_bytes = wanted
            if block is self._last[small]:
                self._last[small] = rest
            self._put(rest)
        block.free = False
        block.requested_bytes = size_bytes
        self.requested_bytes += size_bytes
        if self.requested_bytes > self.peak_requested_bytes:
            self.peak_requested_bytes = self.requested_bytes
        self.allocated_bytes += block.size_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def release(self, block: Block | None) -> None:
        """Take a block back into the cache and join it with free neighbours."""
        if block is None:
            return
        self.requested_bytes -= block.requested_bytes
        self.allocated_bytes -= block.size_bytes
        block.free = True
        block.requested_bytes = 0
        before, after = block.previous, block.next
        if after is not None and after.free:
            self._take(after)
            self._join(block, after)
        if before is not None and before.free:
            self._take(before)
            self._join(before, block)
            block = before
        self._put(block)

    def reset_peaks(self) -> None:
        """Set the peaks to the present values, as `reset_peak_memory_stats` does."""
        self.peak_requested_bytes = self.requested_bytes
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def _best_fit(self, wanted: int, small: bool) -> Block | None:
        free = self._free[small]
        index = bisect_left(free, (wanted, -1))
        last = self._last[small]
        if last is not None and index + 1 < len(free) and free[index][1] == last.address:
            # The block at an expandable segment's end counts as all that it can grow to.
            index += 1
        if index >= len(free):
            return None
        return free.pop(index)[2]

    def _new_segment(self, wanted: int, small: bool) -> Block:
        size = segment_size(wanted)
        if not self._fits(size):
            self._retry()
            if not self._fits(size):
                raise OutOfMemory(size, self.reserved_bytes)
        self._reserve(size)
        block = Block(self._next_address, size, small)
        # A gap of one byte keeps addresses of neighbouring segments apart.
        self._next_address += size + 1
        return block

    def _grow(self, wanted: int, small: bool) -> Block:
        """Map pages behind the end of a pool's segment; return its last block, now large enough."""
        size = self._missing(wanted, small)
        if not self._fits(size):
            self._retry()
            size = self._missing(wanted, small)
            if not self._fits(size):
                raise OutOfMemory(segment_size(wanted), self.reserved_bytes)
        self._reserve(size)
        last = self._last[small]
        if last is not None and last.free:
            self._take(last)
            last.size_bytes += size
            return last
        start = _POOL_START[small] if last is None else last.address + last.size_bytes
        block = Block(start, size, small, previous=last)
        if last is not None:
            last.next = block
        self._last[small] = block
        return block

    def _missing(self, wanted: int, small: bool) -> int:
        """Return the bytes of the pages that a block at the end still needs."""
        last = self._last[small]
        known = last.size_bytes if last is not None and last.free else 0
        return round_up(wanted - known, _PAGE_BYTES[small])

    def _fits(self, size: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + size <= self.capacity_bytes

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _retry(self) -> None:
        """Give back what is wholly free: segments, or pages of expandable ones."""
        self.retries += 1
        for small in (True, False):
            for _, _, block in list(self._free[small]):
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    self._take(block)
                    self.reserved_bytes -= block.size_bytes

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages of a free block; what is left at its ends stays free."""
        page, start = _PAGE_BYTES[block.small], _POOL_START[block.small]
        end = block.address + block.size_bytes
        first = start + round_up(block.address - start, page)
        last = start + (end - start) // page * page
        if last <= first:
            return
        self._take(block)
        self.reserved_bytes -= last - first
        before, after = block.previous, block.next
        left = right = None
        if first > block.address:
            left = Block(block.address, first - block.address, block.small, previous=before)
            self._put(left)
        if end > last:
            right = Block(last, end - last, block.small, next=after)
            self._put(right)
        # A hole parts the blocks on its sides: they never join again.
        if before is not None:
            before.next = left
        if after is not None:
            after.previous = right
        if block is self._last[block.small]:
            self._last[block.small] = left or before

    def _put(self, block: Block) -> None:
        # Addresses differ, so that blocks themselves are never compared.
        insort(self._free[block.small], (block.size_bytes, block.address, block))

    def _take(self, block: Block) -> None:
        free = self._free[block.small]
        free.pop(bisect_left(free, (block.size_bytes, block.address)))

    def _join(self, left: Block, right: Block) -> None:
        if right is self._last[right.small]:
            self._last[right.small] = left
        left.size_bytes += right.size_bytes
        left.next = right.next
        if right.next is not None:
            right.next.previous = left
