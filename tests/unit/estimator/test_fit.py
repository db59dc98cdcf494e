"""The largest batch, the longest sequence, the cheapest changes, and grids."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.changes import CHEAP, COSTLY, FREE, Change, possible_changes
from estimator.errors import UnsupportedError
from estimator.fit import (
    MAX_BATCH,
    Peaks,
    cheapest_changes,
    estimated_peaks,
    grid,
    largest_batch,
    longest_sequence,
)
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, Room
from estimator.units import GIB

ROOM = Room(find_gpu("L4"))


def case(**fields: Any) -> Case:
    return Case.from_dict({"model": "Llama-3.2-1B", "task": "training", **fields})


def tokens_only(bytes_a_token: int, base: int = GIB) -> Any:
    """An answer that grows with tokens."""
    return lambda c: Peaks("forward", base + bytes_a_token * c.batch_size * c.sequence_length)


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_trying_every_value_finds(seed: int) -> None:
    rng = random.Random(seed)
    bends = sorted((rng.randint(1, 9000), rng.randint(1, 4_000_000)) for _ in range(4))
    start, floor = rng.randint(1, 5000), rng.randint(0, 30 * GIB)

    def size(value: int) -> int:
        bent = sum(
            rate * max(0, value - begin) ** (1 + n % 2) for n, (begin, rate) in enumerate(bends)
        )
        return (floor + bent) // 2**20 * 2**20

    found = largest_batch(
        case(batch_size=start), lambda c: Peaks("forward", size(c.batch_size)), ROOM
    )
    if found.value is None:
        assert not ROOM.holds(size(1), None)
        return
    assert ROOM.holds(size(found.value), None)
    assert found.value == MAX_BATCH or not ROOM.holds(size(found.value + 1), None)


def fits(answer: Any, c: Case) -> bool:
    return bool(answer(c).held_by(ROOM))


@pytest.mark.parametrize("start", [1, 7, 300, 20_000])
def test_the_largest_batch_is_the_last_that_fits(start: int) -> None:
    c = case(batch_size=start, sequence_length=512)
    answer = tokens_only(100_000)
    found = largest_batch(c, answer, ROOM)
    assert found.value is not None
    assert fits(answer, replace(c, batch_size=found.value))
    assert not fits(answer, replace(c, batch_size=found.value + 1))
    assert found.peaks == answer(replace(c, batch_size=found.value))
    assert found.limit == "memory"


def test_the_longest_sequence_ends_at_the_positions_that_the_model_knows() -> None:
    answer = tokens_only(1)
    found = longest_sequence(case(), answer, ROOM)
    assert (found.value, found.limit) == (131_072, "positions")
    infer = Case.from_dict({"model": "gpt2", "max_new_tokens": 100})
    assert longest_sequence(infer, answer, ROOM).value == 924
    nowhere = case(model={"model_type": "llama"})
    assert longest_sequence(nowhere, answer, ROOM).limit == "search"
    assert largest_batch(case(sequence_length=1), answer, ROOM).value == MAX_BATCH


def test_nothing_fits() -> None:
    answer = tokens_only(1, base=100 * GIB)
    for found in (largest_batch(case(), answer, ROOM), longest_sequence(case(), answer, ROOM, 16)):
        assert (found.value, found.peaks, found.limit) == (None, None, "memory")


def test_room_is_the_card_less_the_context_less_fragmentation() -> None:
    assert ROOM.room_bytes == 23034 * 2**20 - CONTEXT_HIGH_BYTES
    assert ROOM.holds(1, ROOM.room_bytes)
    assert not ROOM.holds(1, ROOM.room_bytes + 1)
    assert not ROOM.holds(ROOM.room_bytes, None)
    assert ROOM.holds(int(ROOM.room_bytes / 1.06), None)


def test_estimates_at_the_largest_batch_really_fit() -> None:
    c = case(method="lora", sequence_length=2048)
    found = largest_batch(c, estimated_peaks, ROOM)
    assert found.value is not None
    assert fits(estimated_peaks, replace(c, batch_size=found.value))
    assert not fits(estimated_peaks, replace(c, batch_size=found.value + 1))


def test_changes_are_ranked_by_price_and_marked_as_they_fit() -> None:
    c = case(batch_size=4, sequence_length=2048, optimizer="adamw_torch", keep_logits=True)
    found = cheapest_changes(c, estimated_peaks, ROOM)
    prices = [item.change.price for item in found.tried]
    assert prices == sorted(prices)
    assert found.tried[0].change.cost == FREE
    assert any(item.fits for item in found.tried)
    for item in found.tried:
        assert item.peaks == estimated_peaks(item.change.applied(c))
        assert item.fits == fits(estimated_peaks, item.change.applied(c))


def test_sets_are_listed_only_where_no_part_of_them_fits() -> None:
    c = case(model="Meta-Llama-3-8B", batch_size=4, sequence_length=2048)
    found = cheapest_changes(c, estimated_peaks, ROOM)
    fitting = [item.change for item in found.tried if item.fits]
    assert fitting
    for change in fitting:
        others = [other for other in fitting if other is not change]
        assert not any(other.fields.items() <= change.fields.items() for other in others)


def test_what_cannot_be_predicted_is_skipped_with_its_reason() -> None:
    def answer(c: Case) -> Peaks:
        if c.method == "lora":
            raise UnsupportedError("no adapters here")
        return Peaks("backward", 100 * GIB)

    found = cheapest_changes(case(), answer, ROOM)
    assert ({"method": "lora"}, "no adapters here") in found.skipped
    assert not any(item.fits for item in found.tried)


def test_every_change_is_a_possible_case_of_another_kind() -> None:
    rng = random.Random(2)
    for _ in range(200):
        training = rng.random() < 0.6
        fields: dict[str, Any] = {
            "model": "gpt2",
            "task": "training" if training else "inference",
            "batch_size": rng.choice((1, 2, 6, 7)),
            "dtype": rng.choice(("bfloat16", "float32")),
            "attention": rng.choice(("sdpa", "eager")),
        }
        if training:
            fields |= {"optimizer": rng.choice(("adamw_torch", "sgd")), "keep_logits": True}
        if rng.random() < 0.5:
            fields |= {"method": "lora", "quantization": rng.choice((None, "nf4"))}
        c = Case.from_dict(fields)
        for change in possible_changes(c):
            assert change.applied(c) != c
            assert change.cost in (FREE, CHEAP, COSTLY)


def test_changes_join_unless_they_contradict() -> None:
    lora = Change({"method": "lora"}, COSTLY, 100, "a")
    qlora = Change({"method": "lora", "quantization": "nf4"}, COSTLY, 170, "b")
    fused = Change({"optimizer": "adamw_torch_fused"}, FREE, 0, "c")
    eight = Change({"optimizer": "adamw_bnb_8bit"}, CHEAP, 14, "d")
    assert fused.joined(eight) is None
    assert lora.joined(qlora) is None
    both = eight.joined(lora)
    assert both is not None
    assert (both.cost, both.price, both.why) == (COSTLY, 114, "d; a")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "lora", "quantization": "nf4", "gradient_checkpointing": True},
        {"attention": "eager"},
        {"task": "inference"},
    ],
)
def test_a_grid_is_within_a_percent_of_its_estimates(fields: dict[str, Any]) -> None:
    c = case(**fields)
    rng = random.Random(4)
    batches, lengths = [1, *range(2, 65, 3)], list(range(128, 6000, 97))
    table = grid(c, batches, lengths)
    assert len(table) == len(batches)
    for _ in range(25):
        row, column = rng.randrange(len(batches)), rng.randrange(len(lengths))
        there = replace(c, batch_size=batches[row], sequence_length=lengths[column])
        exact = estimate(there).peak.allocated_bytes
        assert table[row][column] == pytest.approx(exact, rel=0.01)


def test_small_grids_are_estimates() -> None:
    c = case()
    table = grid(c, [3, 1], [512, 100])
    for row, batch in zip(table, (3, 1), strict=True):
        for value, length in zip(row, (512, 100), strict=True):
            there = replace(c, batch_size=batch, sequence_length=length)
            assert value == estimate(there).peak.allocated_bytes
    assert grid(c, [], [1]) == []
    assert grid(c, [1, 2], []) == [[], []]
