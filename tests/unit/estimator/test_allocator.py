"""The allocator's rules, each as PyTorch's source has them, and laws over random programs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.allocator import (
    MIN_BLOCK_BYTES,
    Block,
    CachingAllocator,
    OutOfMemory,
    bytes_of_blocks,
    expected_block,
    round_block,
    segment_size,
)
from estimator.units import KIB, MIB


@pytest.mark.parametrize(
    ("asked", "block"), [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB - 1, MIB)]
)
def test_a_block_is_rounded_up_to_512_bytes(asked: int, block: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert round_block(asked) == block
    assert allocator.requested_bytes == asked
    assert allocator.allocated_bytes == block


def test_nothing_is_allocated_for_zero_bytes() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(0)
    allocator.release(block)
    assert block is None
    assert allocator.reserved_bytes == 0


@pytest.mark.parametrize(
    ("asked", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_segments_by_size(asked: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert allocator.reserved_bytes == segment
    assert segment_size(round_block(asked)) == segment


def test_small_blocks_share_a_segment_of_2_mib() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * KIB)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(1)
    assert allocator.reserved_bytes == 4 * MIB


def test_middle_blocks_share_a_segment_of_20_mib() -> None:
    allocator = CachingAllocator()
    allocator.allocate(9 * MIB)
    allocator.allocate(9 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (21 * MIB, 22 * MIB),  # a rest of exactly 1 MiB is not split off
        (21 * MIB - 512, 21 * MIB - 512),  # one block more is
        (12 * MIB, 12 * MIB),
    ],
)
def test_a_rest_up_to_1_mib_counts_as_allocated(asked: int, counted: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert allocator.requested_bytes == asked
    assert allocator.allocated_bytes == counted
    assert expected_block(asked) == counted


def test_in_the_small_pool_any_rest_of_a_block_is_split_off() -> None:
    allocator = CachingAllocator()
    allocator.allocate(2 * MIB // 4 - 512)
    assert allocator.allocated_bytes == 512 * KIB - 512


def test_best_fit_takes_the_smallest_block_that_is_large_enough() -> None:
    allocator = CachingAllocator()
    blocks = {size: allocator.allocate(size * MIB) for size in (40, 20, 30)}
    for block in blocks.values():
        allocator.release(block)
    again = allocator.allocate(24 * MIB)
    assert again is not None
    assert again.address == blocks[30].address  # type: ignore[union-attr]
    assert allocator.reserved_bytes == 90 * MIB


def test_of_equal_blocks_the_lowest_address_is_taken() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(20 * MIB), allocator.allocate(20 * MIB)
    allocator.release(second)
    allocator.release(first)
    assert allocator.allocate(20 * MIB) is first


def test_small_requests_do_not_take_large_blocks() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(20 * MIB))
    allocator.allocate(512)
    assert allocator.reserved_bytes == 22 * MIB


def test_free_neighbours_join_on_both_sides() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    for index in (0, 2, 1):
        allocator.release(blocks[index])
    allocator.allocate(15 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.allocated_bytes == 20 * MIB


def test_blocks_of_different_segments_do_not_join() -> None:
    allocator = CachingAllocator()
    first, second = allocator.allocate(20 * MIB), allocator.allocate(20 * MIB)
    allocator.release(first)
    allocator.release(second)
    allocator.allocate(40 * MIB)
    assert allocator.reserved_bytes == 80 * MIB


def test_a_full_card_gives_cached_segments_back_and_tries_again() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    allocator.release(allocator.allocate(60 * MIB))
    allocator.allocate(70 * MIB)
    assert allocator.retries == 1
    assert allocator.reserved_bytes == 70 * MIB
    assert allocator.peak_reserved_bytes == 70 * MIB


def test_a_segment_in_use_is_not_given_back() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    whole = allocator.allocate(40 * MIB)
    allocator.release(whole)
    allocator.allocate(10 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(70 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_out_of_memory_names_the_segment_that_was_asked_for() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    allocator.allocate(90 * MIB)
    with pytest.raises(OutOfMemory, match="tried to allocate 20971520 bytes") as caught:
        allocator.allocate(3 * MIB)
    assert caught.value.asked_bytes == 20 * MIB
    assert caught.value.reserved_bytes == 90 * MIB
    assert allocator.retries == 1
    assert allocator.allocated_bytes == 90 * MIB


def test_peaks_can_be_reset() -> None:
    allocator = CachingAllocator()
    block = allocator.allocate(20 * MIB)
    kept = allocator.allocate(30 * MIB)
    allocator.release(block)
    assert allocator.peak_allocated_bytes == 50 * MIB
    allocator.reset_peaks()
    assert kept is not None
    assert allocator.peak_requested_bytes == 30 * MIB
    assert allocator.peak_allocated_bytes == 30 * MIB
    assert allocator.peak_reserved_bytes == 50 * MIB


def test_expandable_segments_grow_by_pages_and_reuse_their_end() -> None:
    allocator = CachingAllocator(expandable=True)
    first = allocator.allocate(30 * MIB)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.release(first)
    # 40 MiB are free at the end: two more pages make 70 MiB possible.
    allocator.allocate(70 * MIB)
    assert allocator.reserved_bytes == 80 * MIB
    allocator.allocate(512)
    assert allocator.reserved_bytes == 82 * MIB


def test_expandable_segments_split_off_any_rest() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.allocate(21 * MIB)
    assert allocator.allocated_bytes == 21 * MIB


def test_expandable_segments_prefer_a_larger_block_to_their_own_end() -> None:
    allocator = CachingAllocator(expandable=True)
    hole, _ = allocator.allocate(36 * MIB), allocator.allocate(12 * MIB)
    allocator.release(hole)
    # Free are 36 MiB in the middle and 12 MiB at the end, which could grow.
    again = allocator.allocate(10 * MIB)
    assert again is not None
    assert again.address == hole.address  # type: ignore[union-attr]


def test_expandable_segments_give_back_whole_pages_only() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB, expandable=True)
    first, second = allocator.allocate(50 * MIB), allocator.allocate(10 * MIB)
    assert allocator.reserved_bytes == 60 * MIB
    allocator.release(first)
    assert second is not None
    allocator.allocate(55 * MIB)
    # Two pages of the 50 MiB went back, 10 MiB share a page with the second block.
    assert allocator.retries == 1
    assert allocator.reserved_bytes == 80 * MIB
    with pytest.raises(OutOfMemory) as caught:
        allocator.allocate(41 * MIB)
    assert caught.value.asked_bytes == 42 * MIB


def test_less_fragmentation_with_expandable_segments() -> None:
    """The note in PyTorch's source: batches that grow leave slices behind without them."""
    reserved = {}
    for expandable in (False, True):
        allocator = CachingAllocator(expandable=expandable)
        for size in range(20, 60, 5):
            blocks = [allocator.allocate(size * MIB) for _ in range(3)]
            for block in blocks:
                allocator.release(block)
        reserved[expandable] = allocator.reserved_bytes
    assert reserved[True] == 180 * MIB
    assert reserved[False] > 2 * reserved[True]


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(1, 60 * MIB),
    st.sampled_from((512, MIB, MIB + 1, 10 * MIB, 20 * MIB, 21 * MIB)),
)
PROGRAM = st.lists(st.one_of(SIZES, st.integers(0, 40).map(lambda index: -index)), max_size=60)


def chain(block: Block) -> list[Block]:
    """All blocks of a block's segment, in order."""
    while block.previous is not None:
        block = block.previous
    blocks = [block]
    while blocks[-1].next is not None:
        blocks.append(blocks[-1].next)
    return blocks


def free_blocks(allocator: CachingAllocator) -> list[Block]:
    return [block for pool in allocator._free.values() for _, _, block in pool]


def check(allocator: CachingAllocator, alive: list[Block]) -> None:
    assert 0 <= allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
    assert allocator.requested_bytes == sum(block.requested_bytes for block in alive)
    assert allocator.allocated_bytes == sum(block.size_bytes for block in alive)
    assert allocator.peak_allocated_bytes >= allocator.allocated_bytes
    assert allocator.peak_reserved_bytes >= allocator.reserved_bytes
    segments = {
        segment[0].address: segment
        for segment in (chain(block) for block in (*alive, *free_blocks(allocator)))
    }
    everything = [block for segment in segments.values() for block in segment]
    assert sum(block.size_bytes for block in everything) == allocator.reserved_bytes
    for segment in segments.values():
        for left, right in itertools.pairwise(segment):
            assert left.address + left.size_bytes == right.address
            assert right.previous is left
            assert not (left.free and right.free)
    spans = sorted((block.address, block.address + block.size_bytes) for block in everything)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))


@settings(max_examples=120, deadline=None)
@given(
    program=PROGRAM,
    expandable=st.booleans(),
    capacity=st.one_of(st.none(), st.integers(20, 200).map(lambda mib: mib * MIB)),
)
def test_laws_over_random_programs(
    program: list[int], expandable: bool, capacity: int | None
) -> None:
    """A positive number allocates, the others free one of those alive."""
    allocator = CachingAllocator(capacity, expandable)
    alive: list[Block] = []
    for step in program:
        if step > 0:
            try:
                block = allocator.allocate(step)
            except OutOfMemory:
                assert capacity is not None
                continue
            assert block is not None
            assert block.size_bytes >= step
            assert block.size_bytes % MIN_BLOCK_BYTES == 0
            alive.append(block)
        elif alive:
            allocator.release(alive.pop(-step % len(alive)))
        check(allocator, alive)
        assert capacity is None or allocator.reserved_bytes <= capacity
    for block in alive:
        allocator.release(block)
    check(allocator, [])
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    # With nothing in use, every segment is one free block again.
    assert all(
        expandable or (block.previous is None and block.next is None)
        for block in free_blocks(allocator)
    )


@settings(max_examples=60, deadline=None)
@given(size=SIZES, count=st.integers(0, 30))
def test_the_same_program_again_needs_no_more(size: int, count: int) -> None:
    # Of equal sizes: of several, best fit may put a small one where a large one was.
    sizes = [size] * count
    allocator = CachingAllocator()
    reserved = []
    for _ in range(2):
        blocks = [allocator.allocate(size) for size in sizes]
        for block in blocks:
            allocator.release(block)
        reserved.append(allocator.reserved_bytes)
    assert reserved[0] == reserved[1]


@given(size=st.integers(1, 200 * MIB))
def test_expected_block_is_what_a_fresh_allocator_gives(size: int) -> None:
    """Blocks that share a segment have equal shares of its rest, in whole bytes."""
    allocator = CachingAllocator()
    block = round_block(size)
    count = 20 * MIB // block if MIB < block < 10 * MIB else 1
    for _ in range(count):
        allocator.allocate(size)
    assert count * expected_block(size) <= allocator.allocated_bytes
    assert allocator.allocated_bytes < count * (expected_block(size) + 1)


@given(sizes=st.lists(st.integers(MIB + 1, 40 * MIB), max_size=60))
def test_blocks_that_are_never_freed_are_those_of_the_allocator(sizes: list[int]) -> None:
    allocator = CachingAllocator()
    for size in sizes:
        allocator.allocate(size)
    assert bytes_of_blocks(sizes) == allocator.allocated_bytes
