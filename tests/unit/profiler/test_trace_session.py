"""A traced case from end to end: the same answer always, phases and components named right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import profiler
from estimator import MemoryReport
from estimator.case import Case
from estimator.errors import ModelError, UnsupportedError
from estimator.gpus import DEFAULT_WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES
from profiler.trace import trace_case, trace_run

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 5000,
}


def case(config: dict[str, Any] | None = None, **fields: Any) -> Case:
    return Case.from_dict(
        {"model": {**LLAMA, **(config or {})}, "batch_size": 2, "sequence_length": 128, **fields}
    )


def trace(config: dict[str, Any] | None = None, **fields: Any) -> MemoryReport:
    return trace_case(case(config, **fields))


def training(config: dict[str, Any] | None = None, **fields: Any) -> MemoryReport:
    return trace(config, task="training", **fields)


SEVERAL = (
    case(),
    case(task="training"),
    case(task="training", gradient_checkpointing=True, attention="eager"),
    case(task="training", method="lora", lora={"lora_dropout": 0.1}),
    case(max_new_tokens=8, dtype="float32"),
)


def test_the_same_case_gives_the_same_report_in_any_order() -> None:
    first = [trace_case(item) for item in SEVERAL]
    again = [trace_case(item) for item in reversed(SEVERAL)]
    assert first == again[::-1]


def test_another_process_gives_the_same_report() -> None:
    code = (
        "import json, sys\n"
        "from estimator.case import Case\n"
        "from profiler.trace import trace_case\n"
        "print(json.dumps([trace_case(Case.from_dict(c)).to_dict() for c in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([item.to_dict() for item in SEVERAL[:3]]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(profiler.__file__).parents[1],
    )
    assert json.loads(done.stdout) == [trace_case(item).to_dict() for item in SEVERAL[:3]]


@pytest.mark.parametrize("item", SEVERAL, ids=lambda item: item.label)
def test_the_parts_make_the_whole(item: Case) -> None:
    report = trace_case(item)
    assert report.source == "trace"
    assert report.case == item.to_dict()
    assert report.components.total_bytes == report.peak.allocated_bytes
    assert report.components.unattributed_bytes == 0
    requested, reserved = report.peak.requested_bytes, report.peak.reserved_bytes
    assert requested is not None
    assert reserved is not None
    assert requested <= report.peak.allocated_bytes <= reserved
    assert report.peak.device_bytes is None
    highest = max(phase.peak_allocated_bytes for phase in report.phases)
    assert highest == report.peak.allocated_bytes
    assert all(p.peak_allocated_bytes >= p.end_allocated_bytes for p in report.phases)


def test_phases_by_task() -> None:
    def names(report: MemoryReport) -> list[str]:
        return [phase.name for phase in report.phases]

    assert names(training()) == ["load", "forward", "backward", "optimizer_step"]
    assert names(trace()) == ["load", "prefill", "decode"]
    assert names(trace(max_new_tokens=1)) == ["load", "prefill"]


def test_components_of_a_training_step() -> None:
    """Sizes that can be worked out by hand, on a model whose peak is the loss."""
    report = training(optimizer="adamw_torch")
    parameters = report.parameters.total
    assert report.parameters.trainable == parameters
    assert report.peak.phase == "backward"
    parts = report.components
    assert parts.weights_bytes == pytest.approx(2 * parameters, rel=0.02)
    assert parts.optimizer_states_bytes == pytest.approx(4 * parameters, rel=0.02)
    # The log-softmax and two gradients in fp32; the half-precision logits are gone.
    assert parts.logits_bytes == pytest.approx(3 * 4 * 2 * 128 * 5000, rel=0.05)
    assert parts.workspace_bytes == 2 * DEFAULT_WORKSPACE_BYTES
    assert parts.kv_cache_bytes == 0
    assert parts.activations_bytes > 0


def test_gradients_are_named_when_they_are_there() -> None:
    report = training(optimizer="adamw_torch", sequence_length=8)
    assert report.peak.phase == "optimizer_step"
    parameters = report.parameters.total
    assert report.components.gradients_bytes == pytest.approx(2 * parameters, rel=0.05)
    # foreach's square roots: one more copy of the parameters.
    assert report.components.temporaries_bytes == pytest.approx(2 * parameters, rel=0.05)


def test_the_cache_by_its_shape() -> None:
    report = trace(max_new_tokens=1)
    cache = 2 * 2 * 128 * 2 * 2 * 16 * 2
    ends = {phase.name: phase.end_allocated_bytes for phase in report.phases}
    # The ids that generate returns; those of the prompt, and its mask, are in `load` already.
    assert ends["prefill"] - ends["load"] - cache - DEFAULT_WORKSPACE_BYTES <= 2560
    assert ends["prefill"] - ends["load"] >= cache + DEFAULT_WORKSPACE_BYTES


def test_decode_skips_steps_but_not_their_tokens() -> None:
    """The last step is played with the cache that all steps before have filled."""
    ends = {
        tokens: trace(max_new_tokens=tokens).phases[-1].end_allocated_bytes
        for tokens in (3, 4, 5, 300)
    }
    row = 2 * 2 * 2 * 2 * 16 * 2
    # Keys and values, and an id a token.
    grown = 297 * (row + 2 * 8)
    assert ends[300] - ends[3] == pytest.approx(grown, rel=0.05)
    assert ends[3] <= ends[4] <= ends[5] <= ends[300]
    assert any("skipped" in line for line in trace(max_new_tokens=300).assumptions)


def test_checkpointing_recomputes_what_it_does_not_save() -> None:
    def forward_end(report: MemoryReport) -> int:
        return next(p.end_allocated_bytes for p in report.phases if p.name == "forward")

    fields: dict[str, Any] = {"config": {"vocab_size": 100, "num_hidden_layers": 6}}
    saved, recomputed = training(**fields), training(**fields, gradient_checkpointing=True)
    assert forward_end(recomputed) < forward_end(saved)
    assert recomputed.peak.phase == "backward"
    assert recomputed.components.activations_bytes > 0


def test_workspaces_by_card() -> None:
    for gpu, size in ((None, DEFAULT_WORKSPACE_BYTES), ("H100", HOPPER_WORKSPACE_BYTES)):
        assert trace(gpu=gpu).components.workspace_bytes == size
        assert training(gpu=gpu).components.workspace_bytes == 2 * size


def test_the_trace_says_that_it_is_one() -> None:
    assert any(line.startswith("simulated: torch ") for line in trace().assumptions)


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"model": {"model_type": "no-such-type"}}, UnsupportedError, "no-such-type"),
        ({"model": {**LLAMA, "num_key_value_heads": 3}}, ModelError, "num_key_value_heads 3"),
        ({"model": "no-such-model"}, ModelError, "no-such-model"),
        ({"cache": "paged"}, UnsupportedError, "cache 'paged'"),
    ],
    ids=["type", "heads", "name", "paged"],
)
def test_what_cannot_be_traced_is_refused_in_one_sentence(
    fields: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as caught:
        trace_case(Case.from_dict({"model": LLAMA, **fields}))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_case_leaves_the_next_one_alone() -> None:
    before = trace_case(SEVERAL[1])
    with pytest.raises(UnsupportedError):
        trace(cache="paged")
    assert trace_case(SEVERAL[1]) == before


def test_a_padded_batch_gives_attention_a_mask() -> None:
    given = case(task="training", sequence_length=512)
    full, padded = trace_run(given), trace_run(given, padded=True)
    assert "padded batches: the mask is not all ones" in padded.report.assumptions
    operations = {allocation.operation for allocation in padded.timeline.allocations}
    assert any("efficient" in str(name) for name in operations)
    assert not any("efficient" in str(a.operation) for a in full.timeline.allocations)
    with pytest.raises(UnsupportedError, match="sdpa or eager"):
        trace_run(case(attention="flash_attention_2"), padded=True)
