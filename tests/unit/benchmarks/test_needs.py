"""What cases would need: the largest estimate, and guessed times that grow as they must."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.durations import GPU_START_S, guess_duration
from benchmarks.needs import needs_of, short_size, short_time
from estimator import estimate
from estimator.case import Case
from estimator.errors import ModelError

RWKV = {"model_type": "rwkv", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}


def case(**fields: Any) -> Case:
    return Case.from_dict({"model": "openai-community/gpt2", **fields})


def test_needs_are_those_of_the_largest_and_the_sum_of_times() -> None:
    small, large = case(), case(batch_size=16)
    needs = needs_of([small, large, case(model=RWKV)])
    assert (needs.count, needs.unknown) == (3, 1)
    assert needs.largest_bytes == estimate(large).peak.allocated_bytes
    assert needs.cuda_seconds > 2 * GPU_START_S
    alone = needs_of([case(model=RWKV)])
    assert (alone.largest_bytes, alone.unknown) == (None, 1)


def test_a_model_that_cannot_be_found_is_said() -> None:
    with pytest.raises(ModelError, match="gpt22"):
        needs_of([case(model="gpt22")])


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"sequence_length": 128}, {"sequence_length": 1024}),
        ({"dtype": "bfloat16", "batch_size": 64}, {"dtype": "float32", "batch_size": 64}),
        ({"task": "training"}, {"task": "training", "gradient_checkpointing": True}),
        ({"model": "openai-community/gpt2"}, {"model": "meta-llama/Meta-Llama-3-8B"}),
    ],
)
def test_more_work_takes_longer(less: dict[str, Any], more: dict[str, Any]) -> None:
    first, second = (guess_duration(case(**fields), "cuda") for fields in (less, more))
    assert GPU_START_S < first.total_s < second.total_s
    assert 0 < first.gpu_s < second.gpu_s


def test_sizes_and_times_are_short_and_labelled() -> None:
    assert short_size(65_123_000_000) == "65.1 GB (60.7 GiB)"
    assert short_size(None) == "unknown"
    assert [short_time(s) for s in (40, 89.9, 750, 9000)] == ["40 s", "90 s", "12 min", "2.5 h"]
