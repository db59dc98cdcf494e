"""Surfaces: regions, replays, grids, and the file."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimator.allocator import CachingAllocator
from estimator.errors import RecordError
from estimator.size_polynomials import Term, evaluate, find_polynomial
from estimator.surface import Instant, Span, Stream, Surface, Threshold, UnknownRegion
from estimator.surface_file import from_json, load, save, to_json
from estimator.units import MIB

POINTS = ((2, 131), (3, 307), (5, 803))

WEIGHTS = (Term(100 * MIB + 3),)
TOKENS = (Term(4096, 1, 1),)
SCORES = (Term(24, 1, 2), Term(8, 1, 1))
STREAM = Stream(
    sizes=(WEIGHTS, TOKENS, SCORES),
    # Weights; then in the first step tokens and scores, scores freed, tokens freed; twice.
    events=(0, 1, 2, ~0, ~1, 1, 2, 2, ~0, ~1, ~2),
    spans=(Span("load", True, 0), Span("forward", False, 1), Span("forward", True, 5)),
    instants=(Instant("load", (1, 0, 0)), Instant("forward", (1, 1, 2))),
)


def surface() -> Surface:
    thresholds = (Threshold("batch", 2), Threshold("tokens", 3073))
    return Surface({"case": {"model": "m"}}, thresholds, {"00": STREAM, "10": STREAM, "11": STREAM})


@pytest.mark.parametrize(
    "size",
    [
        (Term(512),),
        (Term(8, 1, 1),),
        (Term(2, 0, 2),),
        (Term(64, 1, 0, 128),),
        (Term(4, 1, 1, 16),),
        (Term(6, 1, 1), Term(768, 1, 0)),
        (Term(16, 1, 2), Term(2048, 1, 1)),
        (Term(8, 1, 1), Term(-8, 1, 0)),
    ],
)
def test_sizes_are_found_from_three_points(size: Any) -> None:
    values = [evaluate(size, *point) for point in POINTS]
    found = find_polynomial(values, POINTS)
    assert found is not None
    for batch, length in ((2, 16), (7, 4096), (11, 1001)):
        assert evaluate(found, batch, length) == evaluate(size, batch, length)


def test_a_cache_that_is_padded_after_it_grew() -> None:
    size = (Term(2, 1, 0, 16, 100),)
    values = [evaluate(size, *point) for point in POINTS]
    assert find_polynomial(values, POINTS, (0, 100)) == size


def test_a_size_without_a_rule_is_none() -> None:
    assert find_polynomial([17, 1001, 23], POINTS) is None
    with pytest.raises(ValueError, match="three points"):
        find_polynomial([1, 2], POINTS[:2])


def test_regions() -> None:
    known = surface()
    assert known.region(1, 3072) == "00"
    assert known.region(2, 1536) == "10"
    assert known.region(2, 1537) == "11"
    with pytest.raises(UnknownRegion, match="batch 1 and length 4000"):
        known.point(1, 4000)
    with pytest.raises(UnknownRegion):
        known.point(1, 8)
    assert Threshold("alignment", 16, 3).beyond(1, 14) is True
    assert Threshold("alignment", 16, 3).beyond(1, 13) is False


def test_a_point_is_what_the_allocator_says() -> None:
    batch, length = 3, 777
    tokens, scores = 4096 * batch * length, 24 * batch * length**2 + 8 * batch * length
    allocator = CachingAllocator()
    allocator.allocate(100 * MIB + 3)
    first, second = allocator.allocate(tokens), allocator.allocate(scores)
    allocator.release(second)
    allocator.release(first)
    allocator.reset_peaks()
    for size in (tokens, scores, scores):
        allocator.allocate(size)
    point = surface().point(batch, length)
    assert point.phase == "forward"
    assert point.allocated_bytes == allocator.peak_allocated_bytes
    assert point.requested_bytes == 100 * MIB + 3 + tokens + 2 * scores
    assert point.reserved_bytes == allocator.peak_reserved_bytes
    assert [phase.name for phase in point.phases] == ["load", "forward"]


def test_a_grid_is_close_to_its_points_and_the_right_way_round() -> None:
    pytest.importorskip("numpy")
    known = surface()
    batches, lengths = [2, 5, 9], [64, 1000, 3000, 5000]
    table = known.grid(batches, lengths)
    for row, batch in zip(table, batches, strict=True):
        for value, length in zip(row, lengths, strict=True):
            assert value == pytest.approx(known.point(batch, length).allocated_bytes, rel=0.01)
    loaded = known.grid([2], [64], phase="load")[0][0]
    assert loaded == pytest.approx(100 * MIB, rel=0.02)
    with pytest.raises(UnknownRegion):
        known.grid([1, 2], [100, 4000])


def test_each_cell_of_a_grid_is_of_its_own_region() -> None:
    pytest.importorskip("numpy")
    double = replace(STREAM, instants=(Instant("forward", (2, 0, 0)),))
    thresholds = (Threshold("tokens", 3073),)
    known = Surface({}, thresholds, {"0": STREAM, "1": double})
    for batch in (2, 40):
        for length in (16, 100, 2000):
            beyond = batch * length > 3072
            alone = known.grid([batch], [length])[0][0]
            table = known.grid([2, 40], [16, 100, 2000])
            assert table[(2, 40).index(batch)][(16, 100, 2000).index(length)] == alone
            assert (alone == 2 * 204_801 * 512) == beyond


def test_a_file_gives_the_same_surface(tmp_path: Path) -> None:
    path = tmp_path / "surface.json"
    save(surface(), path)
    again = load(path)
    assert again == surface()
    assert again.point(3, 777) == surface().point(3, 777)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_refused_or_can_be_played() -> None:
    text = to_json(surface())
    rng = random.Random(5)
    for _ in range(300):
        data = json.loads(text)
        _damage(data, rng)
        try:
            known = from_json(json.dumps(data))
        except RecordError:
            continue
        for stream in known.streams.values():
            stream.replay(2, 300)  # what is read can be played
    for cut in (0, 1, len(text) // 2, len(text) - 1):
        with pytest.raises(RecordError):
            from_json(text[:cut])


def _damage(data: Any, rng: random.Random) -> None:
    """Put a wrong value somewhere inside."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = rng.choice(keys)
        if isinstance(data[key], (dict, list)) and data[key] and rng.random() < 0.8:
            data = data[key]
            continue
        data[key] = rng.choice([None, -99, "x", [], {}, 1.5, True, 10**6])
        return


def test_a_newer_file_names_the_way_out() -> None:
    data = json.loads(to_json(surface())) | {"surface_version": 2}
    with pytest.raises(RecordError, match="newer gpumem"):
        from_json(json.dumps(data))
    with pytest.raises(RecordError, match="no surface"):
        from_json("[]")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        load(tmp_path / "none.json")
    with pytest.raises(RecordError, match="cannot be written"):
        save(surface(), tmp_path / "none" / "surface.json")
