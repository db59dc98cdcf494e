"""What a run's history adds: rests of blocks that were cut from larger free ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.case_generator import QUICK, draw_cases
from estimator import Case, estimate
from estimator.allocator import CachingAllocator, expected_block
from estimator.architecture import estimate_architecture
from estimator.architecture.events import Storage
from estimator.architecture.history import MOST_EVENTS, PLAYED_BELOW_BYTES
from estimator.architecture.player import Player
from estimator.architecture.run import Pass
from estimator.errors import UnsupportedError
from estimator.units import MIB


def answered(case: Case) -> bool:
    try:
        estimate(case)
    except UnsupportedError:
        return False
    return True


CASES = st.integers(0, 10_000).map(lambda seed: next(draw_cases(seed, 1, QUICK))).filter(answered)


def test_a_block_cut_from_a_larger_one_keeps_its_rest() -> None:
    player = Player(CachingAllocator())
    old, new = Storage(12 * MIB, "activations"), Storage(11 * MIB + MIB // 2, "logits")
    player.follow([Pass([(old, 1), (old, -1)], "")])
    seen = player.begin()
    player.follow([Pass([(new, 1)], "")])
    assert player.allocator.allocated_bytes == 12 * MIB
    assert expected_block(new.requested) == 12 * MIB
    assert (seen.allocated, seen.expected, player.beyond) == (12 * MIB, 12 * MIB, 0)
    # Another one of 20 MiB leaves more than 1 MiB, which is split off: nothing is beyond.
    player.make_all([20 * MIB], "kv_cache")
    player.free_all("kv_cache")
    player.make_all([18 * MIB + 512], "temporaries")
    assert player.beyond == 0
    player.make_all([19 * MIB], "gradients")
    player.free_all("gradients")
    player.make_all([18 * MIB + 3 * MIB // 2], "gradients")
    assert player.beyond == player.allocator.allocated_bytes - player.expected
    assert sum(player.begin().beyond.values()) == player.beyond


def test_a_component_is_settled_as_a_whole() -> None:
    player = Player(CachingAllocator())
    player.make_all([3 * MIB] * 5, "gradients")
    player.settle("gradients", 15 * MIB + 512)
    assert player.expected == 15 * MIB + 512
    assert player.begin().beyond == {"gradients": player.beyond}
    player.free_all("gradients")
    assert (player.expected, player.beyond, player.allocator.allocated_bytes) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_history_changes_rests_alone(case: Case) -> None:
    """What is asked for stays, and so does what loading leaves."""
    plain, played = estimate_architecture(case, history=False), estimate(case)
    assert played.peak.requested_bytes == plain.peak.requested_bytes
    assert played.phases[0] == plain.phases[0]
    assert abs(played.peak.allocated_bytes / plain.peak.allocated_bytes - 1) < 0.25
    assert played.peak.allocated_bytes <= (played.peak.reserved_bytes or 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "Llama-3.1-8B", "task": "training"},
        {"model": "Llama-3.1-8B", "batch_size": 2},
    ],
)
def test_a_large_run_is_not_played(fields: dict[str, Any]) -> None:
    case = Case.from_dict(fields)
    plain, report = estimate_architecture(case, history=False), estimate(case)
    assert plain.peak.allocated_bytes > PLAYED_BELOW_BYTES
    assert (report.peak.allocated_bytes, report.phases) == (
        plain.peak.allocated_bytes,
        plain.phases,
    )


def test_a_run_of_many_layers_is_not_played() -> None:
    layer = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    model = {"model_type": "llama", "vocab_size": 64, "num_hidden_layers": MOST_EVENTS // 50}
    case = Case.from_dict({"model": {**model, **layer}, "task": "training", "sequence_length": 64})
    plain, report = estimate_architecture(case, history=False), estimate(case)
    assert report.peak.allocated_bytes == plain.peak.allocated_bytes
