"""Real measurements on a CUDA GPU: `pytest -m gpu`. Each case is a fresh worker."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from estimator.case import Case
from profiler.environment import cuda_problem
from profiler.history import read_history
from profiler.record import TRAINER_LOOP, Record
from profiler.repeats import run_repeats
from profiler.requests import HowToRun
from profiler.workers import Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason=f"no CUDA GPU: {cuda_problem()}"),
]

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 65536,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 4, "n_head": 12, "n_positions": 2048}

TRAINING = {"task": "training", "batch_size": 4, "sequence_length": 1024}
CASES: dict[str, dict[str, Any]] = {
    "inference-bf16": {"model": LLAMA, "batch_size": 4, "max_new_tokens": 32},
    "inference-fp32-eager": {"model": LLAMA, "dtype": "float32", "attention": "eager"},
    "inference-static": {"model": LLAMA, "cache": "static", "max_new_tokens": 16},
    "full-bf16-fused": {"model": LLAMA, **TRAINING},
    "full-bf16-foreach": {"model": LLAMA, **TRAINING, "optimizer": "adamw_torch"},
    "full-fp32-sgd": {"model": GPT2, **TRAINING, "dtype": "float32", "optimizer": "sgd"},
    "full-checkpointing": {"model": LLAMA, **TRAINING, "gradient_checkpointing": True},
    "full-accumulation": {"model": GPT2, **TRAINING, "gradient_accumulation_steps": 2},
    "lora-bf16": {"model": LLAMA, **TRAINING, "method": "lora"},
    "lora-checkpointing": {
        "model": LLAMA,
        **TRAINING,
        "method": "lora",
        "gradient_checkpointing": True,
    },
}


@cache
def measure(name: str) -> Record:
    with Worker("cuda", 300) as worker:
        record = worker.run(Case.from_dict(CASES[name]))
    assert record.status == "ok", record.error
    return record


@pytest.mark.parametrize("name", CASES)
def test_a_measured_record_adds_up(name: str) -> None:
    record = measure(name)
    peak, components, measurement = record.peak, record.components, record.measurement
    assert peak is not None
    assert components is not None
    assert measurement is not None
    training = CASES[name].get("task") == "training"
    expected = (
        ["load", "forward", "backward", "optimizer_step"]
        if training
        else ["load", "prefill", "decode"]
    )
    assert [phase.name for phase in measurement.phases] == expected
    assert components.total_bytes == peak.allocated_bytes
    assert components.unattributed_bytes >= 0
    assert components.workspace_bytes > 0
    assert peak.requested_bytes is not None
    assert peak.reserved_bytes is not None
    assert peak.requested_bytes <= peak.allocated_bytes <= peak.reserved_bytes
    for phase in measurement.phases:
        for start, high, end in (
            (phase.start.allocated_bytes, phase.peak.allocated_bytes, phase.end.allocated_bytes),
            (phase.start.reserved_bytes, phase.peak.reserved_bytes, phase.end.reserved_bytes),
        ):
            assert high >= start
            assert high >= end
    assert measurement.weights_source == "random"
    assert measurement.allocator_retries == 0
    assert measurement.driver_used_bytes is not None
    assert measurement.driver_used_bytes > measurement.phases[-1].end.reserved_bytes
    assert record.environment is not None
    assert record.environment.torch is not None


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_within_one_percent(name: str) -> None:
    record = measure(name)
    with Worker("trace", 300) as worker:
        traced = worker.run(Case.from_dict(CASES[name]))
    assert traced.status == "ok", traced.error
    # cuBLAS' workspaces depend on the card, which these cases do not name: compared without.
    sizes = []
    for side in (traced, record):
        assert side.peak is not None
        assert side.components is not None
        assert side.peak.requested_bytes is not None
        sizes.append(side.peak.requested_bytes - side.components.workspace_bytes)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize("name", ["inference-bf16", "full-bf16-fused"])
def test_repeats_agree_to_the_byte(name: str) -> None:
    with Worker("cuda", 300) as worker:
        records = run_repeats(worker, Case.from_dict(CASES[name]), 2)
    assert [record.status for record in records] == ["ok", "ok"]
    assert not [flag for record in records for flag in record.flags if "repeats differ" in flag]
    assert [record.repeat for record in records] == [1, 2]


def test_out_of_memory_is_a_result() -> None:
    # Logits alone: 2**20 tokens x 32 000 x 2 B = 67 GB, and 134 GB more for their fp32 copy.
    case = Case.from_dict(
        {
            "model": {**LLAMA, "num_hidden_layers": 1},
            "task": "training",
            "batch_size": 64,
            "sequence_length": 16384,
        }
    )
    with Worker("cuda", 300) as worker:
        record = worker.run(case)
    assert record.status == "oom"
    assert record.oom is not None
    assert record.oom.phase in ("forward", "backward")
    assert record.oom.asked_bytes is not None
    assert record.oom.free_bytes is not None
    assert record.oom.asked_bytes > record.oom.free_bytes
    assert record.error is not None
    assert "out of GPU memory" in record.error.message


@pytest.mark.parametrize("name", ["full-bf16-fused", "full-checkpointing", "lora-bf16"])
def test_the_own_loop_agrees_with_transformers_trainer(name: str) -> None:
    own = measure(name)
    with Worker("cuda", 300) as worker:
        trainer = worker.run(Case.from_dict(CASES[name]), how=HowToRun(loop=TRAINER_LOOP))
    assert trainer.status == "ok", trainer.error
    assert trainer.loop == "trainer"
    assert own.peak is not None
    assert trainer.peak is not None
    assert own.peak.allocated_bytes == pytest.approx(trainer.peak.allocated_bytes, rel=0.01)
    assert own.peak.requested_bytes == pytest.approx(trainer.peak.requested_bytes, rel=0.01)


@pytest.mark.parametrize("name", ["inference-bf16", "full-bf16-fused"])
def test_the_history_holds_the_measured_peak_and_the_phases(name: str, tmp_path: Path) -> None:
    case = Case.from_dict(CASES[name])
    target = tmp_path / "history.pickle"
    with Worker("cuda", 300) as worker:
        record = worker.run(case, how=HowToRun(snapshot=target))
    assert record.status == "ok", record.error
    assert record.peak is not None
    # Recording is done on the host, and changes nothing.
    measured = measure(name).peak
    assert measured is not None
    assert record.peak == measured
    history = read_history(target)
    requested = record.peak.requested_bytes
    assert requested is not None
    # Blocks are rounded up to 512 B in the history, and step 1 is in it.
    assert requested <= max(history.allocated_bytes) <= 1.02 * record.peak.allocated_bytes
    assert max(history.reserved_bytes) >= (record.peak.reserved_bytes or 0)
    marked = {mark.name.partition(" of ")[0] for mark in history.marks}
    assert marked >= {phase.name for phase in record.phases} - {"load"}


def test_a_shared_card_changes_nothing_but_the_device_counter() -> None:
    alone = measure("full-bf16-fused")
    assert alone.peak is not None
    share_bytes = 2 * (alone.peak.reserved_bytes or 0)
    with Worker("cuda", 300) as worker:
        shared = worker.run(
            Case.from_dict(CASES["full-bf16-fused"]), how=HowToRun(share_bytes=share_bytes)
        )
    assert shared.peak is not None
    assert shared.peak == replace(alone.peak, device_bytes=None)
    assert shared.measurement is not None
    assert (shared.measurement.share_bytes, shared.measurement.context_bytes) == (share_bytes, None)


def test_an_allocator_that_is_held_to_its_share_runs_out_of_it() -> None:
    weights = measure("full-bf16-fused").components
    assert weights is not None
    how = HowToRun(share_bytes=2 * weights.weights_bytes)
    with Worker("cuda", 300) as worker:
        record = worker.run(Case.from_dict(CASES["full-bf16-fused"]), how=how)
    assert record.status == "oom"
