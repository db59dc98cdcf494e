"""Laws that the formulas' answers keep, whatever the case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.case_generator import QUICK, draw_cases
from estimator import Case, MemoryReport, estimate
from estimator.architecture.delta_rule import CHUNK
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec
from estimator.gpus import DEFAULT_WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def answered(case: Case) -> bool:
    try:
        estimate(case)
    except UnsupportedError:
        return False
    return True


CASES = st.integers(0, 10_000).map(lambda seed: next(draw_cases(seed, 1, QUICK))).filter(answered)


def llama(config: dict[str, Any] | None = None, **fields: Any) -> MemoryReport:
    return estimate(Case.from_dict({"model": {**LLAMA, **(config or {})}, **fields}))


def training(config: dict[str, Any] | None = None, **fields: Any) -> MemoryReport:
    return llama(config, task="training", **fields)


def requested(report: MemoryReport) -> int:
    assert report.peak.requested_bytes is not None
    return report.peak.requested_bytes


@settings(max_examples=150, deadline=None)
@given(case=CASES)
def test_the_parts_make_the_whole(case: Case) -> None:
    report = estimate(case)
    sizes = [value for key, value in report.to_dict()["components"].items()]
    assert all(isinstance(size, int) and size >= 0 for size in sizes)
    assert sum(sizes) == report.peak.allocated_bytes
    assert report.components.unattributed_bytes == 0
    names = [phase.name for phase in report.phases]
    if case.training:
        assert names == ["load", "forward", "backward", "optimizer_step"]
    else:
        assert names == ["load", "prefill", *(["decode"] if case.max_new_tokens != 1 else [])]
    assert report.peak.phase in names
    assert all(phase.peak_allocated_bytes >= phase.end_allocated_bytes for phase in report.phases)
    highest = max(phase.peak_allocated_bytes for phase in report.phases)
    assert highest == report.peak.allocated_bytes
    assert 0 < requested(report) <= report.peak.allocated_bytes
    assert report.peak.instant
    assert report.peak.instant in (report.peak.reason or "")


@settings(max_examples=100, deadline=None)
@given(case=CASES, more=st.integers(1, 5))
def test_a_larger_batch_needs_no_less(case: Case, more: int) -> None:
    larger = replace(case, batch_size=case.batch_size + more)
    assert requested(estimate(larger)) >= requested(estimate(case))


@settings(max_examples=100, deadline=None)
@given(case=CASES, more=st.integers(1, 100))
def test_longer_sequences_need_no_less(case: Case, more: int) -> None:
    # From a window's length on, another kernel runs.
    windows = ("sliding_window", "use_sliding_window", "layer_types", "attention_window_size")
    assume(isinstance(case.model, dict) and not any(case.model.get(name) for name in windows))
    # In fp32 whole chunks of a delta rule need more than padded ones (the trace agrees).
    assume("linear_num_key_heads" not in case.model or case.sequence_length % CHUNK != 0)
    longer = replace(case, sequence_length=case.sequence_length + more)
    assert requested(estimate(longer)) >= requested(estimate(case))


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(2, 30),
    batch=st.integers(1, 4),
    length=st.integers(16, 2048),
    fields=st.sampled_from(
        (
            {},
            {"task": "training"},
            {"task": "training", "gradient_checkpointing": True},
            {"task": "training", "method": "lora", "attention": "eager"},
            {"task": "training", "optimizer": "adamw_torch", "dtype": "float32"},
        )
    ),
)
def test_layers_add_up(layers: int, batch: int, length: int, fields: dict[str, Any]) -> None:
    """The peak is a maximum over instants that each grow by the same bytes a layer: convex."""
    needs = [
        requested(
            llama(
                {"num_hidden_layers": layers + more},
                batch_size=batch,
                sequence_length=length,
                **fields,
            )
        )
        for more in range(3)
    ]
    assert needs[1] > needs[0]
    assert needs[2] - needs[1] >= needs[1] - needs[0]


@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_checkpointing_never_saves_more(case: Case) -> None:
    """What is saved when forward ends: a layer's input instead of all that the layer saves."""
    assume(case.training)
    assume(parse_spec(load_config(case.model)).checkpointable)
    whole = replace(case, recompute_granularity="full")
    ends = {}
    for checkpointing in (False, True):
        report = estimate(replace(whole, gradient_checkpointing=checkpointing))
        ends[checkpointing] = next(p for p in report.phases if p.name == "forward")
    if case.method == "lora":
        # Adapters on a frozen base save little, and checkpointing keeps layers' inputs.
        assume(case.lora is not None and case.lora.target_modules == "all-linear")
    assert ends[True].end_allocated_bytes <= ends[False].end_allocated_bytes


def test_weights_are_the_parameters_and_little_more() -> None:
    for dtype, width in (("bfloat16", 2), ("float16", 2), ("float32", 4)):
        report = llama(dtype=dtype)
        parameters = report.parameters.total
        assert parameters * width <= report.components.weights_bytes < parameters * width * 1.02


def test_the_cache_by_its_shape() -> None:
    """2 * tokens * layers * key/value heads * head size * bytes; blocks round up by 512."""
    report = llama(batch_size=3, sequence_length=512, max_new_tokens=1)
    end = {phase.name: phase.end_allocated_bytes for phase in report.phases}
    cache = 2 * 3 * 512 * 4 * 2 * 32 * 2
    # What generate returns: the prompt and one new token.
    ids = 8 * 3 * 513
    assert end["prefill"] - end["load"] == cache + ids + DEFAULT_WORKSPACE_BYTES


def test_grouped_heads_need_a_smaller_cache() -> None:
    grouped, full = llama(), llama({"num_key_value_heads": 8})
    assert 4 * grouped.components.kv_cache_bytes == full.components.kv_cache_bytes


def test_a_sliding_cache_stops_growing() -> None:
    def decode_end(window: int | None, tokens: int) -> int:
        report = llama(
            {"model_type": "mistral", "sliding_window": window},
            sequence_length=256,
            max_new_tokens=tokens,
        )
        return report.phases[-1].end_allocated_bytes

    ids = 2 * 8 * 1000
    grown = decode_end(None, 2000) - decode_end(None, 1000)
    assert grown >= 2 * 1000 * 4 * 2 * 32 * 2
    assert decode_end(128, 2000) - decode_end(128, 1000) <= ids


def test_only_the_last_tokens_logits_in_inference() -> None:
    wide = {"vocab_size": 100_000}
    short, long = llama(wide, sequence_length=16), llama(wide, sequence_length=64)
    assert short.components.logits_bytes == long.components.logits_bytes
    # The newest token's, a copy in fp32, and that of the token before.
    assert short.components.logits_bytes == pytest.approx(100_000 * (2 + 4 + 4), rel=1e-3)


def test_the_loss_holds_three_to_four_buffers_of_the_logits() -> None:
    tokens, vocabulary = 2 * 512, 100_000
    report = training({"vocab_size": vocabulary}, batch_size=2, sequence_length=512)
    assert report.peak.phase == "backward"
    assert "100000-token vocabulary" in (report.peak.instant or "")
    # The log-softmax, its gradient, and the gradient of the fp32 logits.
    assert report.components.logits_bytes == pytest.approx(12 * tokens * vocabulary, rel=1e-6)
    kept = training({"vocab_size": vocabulary}, batch_size=2, sequence_length=512, keep_logits=True)
    more = kept.components.logits_bytes - report.components.logits_bytes
    assert more == pytest.approx(2 * tokens * vocabulary, rel=1e-2)


def test_kept_logits_live_through_the_whole_backward_pass() -> None:
    fields: dict[str, Any] = {"batch_size": 8, "sequence_length": 256, "attention": "eager"}
    dropped, kept = training(**fields), training(**fields, keep_logits=True)
    ends = [
        next(phase.end_allocated_bytes for phase in report.phases if phase.name == "backward")
        for report in (dropped, kept)
    ]
    assert ends[0] == ends[1]
    logits = 2 * 8 * 256 * 1000
    assert requested(kept) - requested(dropped) >= logits


def test_a_tied_table_has_a_gradient_in_two_parts_and_their_sum() -> None:
    """The head's part waits for the embeddings'; both are there while the sum is made."""
    wide = {"vocab_size": 200_000, "tie_word_embeddings": True, "num_hidden_layers": 1}
    tied = training(wide, sequence_length=16, optimizer="sgd")
    table = 200_000 * 256 * 2
    assert tied.peak.phase == "backward"
    assert tied.peak.instant == "backward of the embeddings"
    assert tied.components.temporaries_bytes == pytest.approx(2 * table, rel=1e-2)
    assert tied.components.gradients_bytes >= table


@pytest.mark.parametrize(
    ("optimizer", "momentum", "copies"),
    [("adamw_torch_fused", 0.0, 2), ("adamw_torch", 0.0, 2), ("sgd", 0.0, 0), ("sgd", 0.9, 1)],
)
def test_states_of_the_optimizers(optimizer: str, momentum: float, copies: int) -> None:
    report = training(optimizer=optimizer, momentum=momentum)
    states = report.components.optimizer_states_bytes
    assert states == pytest.approx(copies * report.components.weights_bytes, rel=0.02)


def test_foreach_adamw_holds_one_more_copy_of_the_parameters() -> None:
    fused = training(sequence_length=16)
    foreach = training(sequence_length=16, optimizer="adamw_torch")
    assert foreach.peak.phase == "optimizer_step"
    copy = 2 * foreach.parameters.total
    assert foreach.components.temporaries_bytes == pytest.approx(copy, rel=0.02)
    assert requested(foreach) > requested(fused)


def test_only_adapters_have_gradients_and_states() -> None:
    full = training()
    lora = training(method="lora", lora={"r": 8, "target_modules": ["q_proj"]})
    assert lora.parameters.trainable == 4 * 8 * (256 + 256)
    assert lora.parameters.total == full.parameters.total + lora.parameters.trainable
    # Adapters are fp32 on a half-precision base: two states of 4 B an element.
    assert lora.components.optimizer_states_bytes >= 8 * lora.parameters.trainable
    assert lora.components.optimizer_states_bytes < full.components.optimizer_states_bytes / 10


def test_accumulation_holds_gradients_while_forward_runs() -> None:
    once, more = training(), training(gradient_accumulation_steps=4)
    forward = [
        next(phase.peak_allocated_bytes for phase in report.phases if phase.name == "forward")
        for report in (once, more)
    ]
    assert forward[1] - forward[0] == pytest.approx(2 * once.parameters.total, rel=0.05)
    again = training(gradient_accumulation_steps=8)
    assert again.peak == more.peak


def test_eager_attention_holds_scores_of_every_pair_of_tokens() -> None:
    flash, eager = training(sequence_length=2048), training(sequence_length=2048, attention="eager")
    scores = 8 * 2048 * 2048
    assert requested(eager) - requested(flash) >= 4 * (2 + 2) * scores


def test_fp32_with_grouped_heads_falls_to_the_math_path() -> None:
    """The memory-efficient kernel knows no grouped heads: S**2 scores appear in silence."""
    fields: dict[str, Any] = {"dtype": "float32", "sequence_length": 2048}
    grouped, full = training(**fields), training({"num_key_value_heads": 8}, **fields)
    assert requested(grouped) > requested(full) + 4 * 8 * 2048 * 2048


def test_head_sizes_that_flash_has_to_pad_need_more() -> None:
    def activations(head_dim: int) -> int:
        report = training({"head_dim": head_dim}, sequence_length=2048)
        return next(p for p in report.phases if p.name == "forward").end_allocated_bytes

    assert activations(36) > activations(40)


def test_workspaces_by_card() -> None:
    for gpu, size in ((None, DEFAULT_WORKSPACE_BYTES), ("H100", HOPPER_WORKSPACE_BYTES)):
        assert llama(gpu=gpu).components.workspace_bytes == size
        assert training(gpu=gpu).components.workspace_bytes == 2 * size


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
def test_quantized_bases_are_smaller(quantization: str) -> None:
    plain = llama({"hidden_size": 1024, "intermediate_size": 4096})
    small = llama({"hidden_size": 1024, "intermediate_size": 4096}, quantization=quantization)
    assert small.parameters == plain.parameters
    share = {"int8": 0.5, "nf4": 0.29, "fp4": 0.29}[quantization]
    ratio = small.components.weights_bytes / plain.components.weights_bytes
    assert share <= ratio <= share + 0.05


def test_what_the_second_layer_keeps_is_its_own() -> None:
    # The first layer's input needs no gradient, so it keeps nothing of it; the second's does.
    report = training(
        {"hidden_size": 512, "head_dim": 256},
        method="lora",
        dtype="float32",
        lora={"r": 256, "target_modules": ["q_proj", "o_proj"]},
        sequence_length=32,
        optimizer="adamw_torch",
    )
    assert report.peak.phase == "optimizer_step"
    assert report.components.activations_bytes == 0
