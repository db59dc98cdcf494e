"""The whole measurement on a CPU: real models and loops, counters that count live tensors."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from estimator.case import Case
from estimator.errors import EnvironmentUnavailable, ModelError, UnsupportedError
from estimator.units import MIB, round_up
from profiler.counters import CudaCounters, DeviceReading, Reading, Shortage
from profiler.measure import measure_case
from profiler.record import OWN_LOOP, TRAINER_LOOP, Counts, Record
from profiler.requests import AS_USUAL, HowToRun
from profiler.tensors import BLOCK_BYTES

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
HIDDEN, MLP, LAYERS, VOCAB = 64, 128, 2, 320
PARAMETERS = 2 * VOCAB * HIDDEN + LAYERS * (3 * HIDDEN * MLP + 3 * HIDDEN * HIDDEN + 2 * HIDDEN)
PARAMETERS += HIDDEN

WORKSPACE = 7 * BLOCK_BYTES


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """Follows every storage on the CPU: an allocator of 512 B blocks without a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, torch.Tensor) and item.device.type == "cpu":
                self._see(item.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, round_up(storage.nbytes(), BLOCK_BYTES)
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.current -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.current += size
        self.peak = max(self.peak, self.current)


class FakeCounters:
    """Counters of a device that is the CPU; a failure can be set for the nth synchronization."""

    def __init__(self, fail_at: int | None = None, message: str = "", alone: bool = True) -> None:
        self.live = LiveBytes()
        self.calls: list[str] = []
        self.marks: list[str] = []
        self.shortage: Shortage | None = None
        self.retries = 0
        self._alone = alone
        self._turns = 0
        self._fail_at = fail_at
        self._message = message

    def start(self) -> None:
        self.calls.append("start")

    def limit(self, size_bytes: int) -> None:
        self.calls.append(f"limit {size_bytes}")

    def synchronize(self) -> None:
        self._turns += 1
        if self._turns == self._fail_at:
            raise torch.OutOfMemoryError(self._message)

    def read(self) -> Reading:
        held = WORKSPACE if self._turns > 1 else 0
        current, peak = counts(self.live.current + held), counts(self.live.peak + held)
        return Reading(current=current, peak=peak, retries=self.retries, ooms=0)

    def reset_peaks(self) -> None:
        self.calls.append("reset")
        self.live.peak = self.live.current

    def read_device(self) -> DeviceReading:
        context = 500 * MIB if self._alone else None
        return DeviceReading(600 * MIB, 81559 * MIB, context, self._alone)

    def free_workspaces(self) -> int:
        return WORKSPACE

    def record_history(self) -> None:
        self.calls.append("record")

    def mark(self, name: str) -> None:
        self.marks.append(name)

    def write_history(self, path: Path) -> None:
        path.write_text("history")


def counts(allocated_bytes: int) -> Counts:
    return Counts(
        requested_bytes=allocated_bytes - 10,
        allocated_bytes=allocated_bytes,
        reserved_bytes=round_up(allocated_bytes, 2 * MIB),
    )


def measure(
    counters: FakeCounters | None = None, how: HowToRun = AS_USUAL, **fields: Any
) -> Record:
    case = Case.from_dict({"model": LLAMA, "sequence_length": 16, **fields})
    counters = counters or FakeCounters()
    with counters.live:
        return measure_case(case, how, counters=counters, device="cpu")


def names(record: Record) -> list[str]:
    assert record.measurement is not None
    assert [phase.name for phase in record.phases] == [
        phase.name for phase in record.measurement.phases
    ]
    return [phase.name for phase in record.phases]


def test_inference_is_measured_phase_by_phase() -> None:
    record = measure(dtype="float32", max_new_tokens=3, batch_size=2)
    assert record.status == "ok"
    assert names(record) == ["load", "prefill", "decode"]
    assert record.parameters is not None
    assert record.parameters.total == PARAMETERS
    assert record.parameters.trainable == 0
    assert record.peak is not None
    assert record.peak.phase == "prefill"
    assert record.components is not None
    assert record.components.weights_bytes >= 4 * PARAMETERS
    assert record.components.weights_bytes < 4 * PARAMETERS + 64 * BLOCK_BYTES
    # Keys and values, as they are when prefill ends: batch 2, two heads of 16, 16 tokens, fp32.
    assert record.components.kv_cache_bytes == 2 * LAYERS * (2 * 2 * 16 * 16) * 4
    assert record.components.workspace_bytes == WORKSPACE
    assert 0 < record.components.unattributed_bytes < 8 * (2 * 16 * MLP * 4)
    assert record.components.total_bytes == record.peak.allocated_bytes
    assert record.peak.device_bytes == (record.peak.reserved_bytes or 0) + 500 * MIB


def test_training_is_read_from_the_second_step_on() -> None:
    counters = FakeCounters()
    record = measure(counters, task="training", dtype="float32", batch_size=2)
    assert names(record) == ["load", "forward", "backward", "optimizer_step"]
    assert record.measurement is not None
    load, forward, backward, step = record.measurement.phases
    # Steps 2 and 3 start with the states there: weights and two states of their size.
    assert forward.start.allocated_bytes >= 3 * 4 * PARAMETERS
    assert load.end.allocated_bytes < 2 * 4 * PARAMETERS
    assert backward.end.allocated_bytes >= 4 * 4 * PARAMETERS
    assert step.end.allocated_bytes < backward.end.allocated_bytes
    assert step.start == backward.end
    for phase in record.measurement.phases:
        assert phase.peak.allocated_bytes >= phase.start.allocated_bytes
        assert phase.peak.allocated_bytes >= phase.end.allocated_bytes
    assert record.measurement.steps == 3
    assert record.measurement.weights_source == "random"
    # Load, then three phases in each of three steps; and none before the first reading.
    assert counters.calls == ["start"] + 9 * ["reset"]


def test_components_of_training_add_up_to_the_peak() -> None:
    record = measure(task="training", dtype="float32", batch_size=16)
    components, peak = record.components, record.peak
    assert components is not None
    assert peak is not None
    assert peak.phase in ("forward", "backward")
    assert components.total_bytes == peak.allocated_bytes
    # fp32 AdamW: two states of the parameters' size, and a step count each.
    assert components.optimizer_states_bytes >= 2 * components.weights_bytes - 64 * BLOCK_BYTES
    assert components.gradients_bytes == 0
    assert components.unattributed_bytes >= 16 * 16 * VOCAB * 4


def test_gradients_are_attributed_where_they_are_whole() -> None:
    # foreach AdamW: a copy of a state on top of weights, gradients and both states.
    record = measure(task="training", dtype="float32", sequence_length=2, optimizer="adamw_torch")
    assert record.peak is not None
    assert record.components is not None
    assert record.peak.phase == "optimizer_step"
    assert record.components.gradients_bytes >= 4 * PARAMETERS
    assert record.components.total_bytes == record.peak.allocated_bytes


def test_lora_has_states_for_its_adapters_only() -> None:
    record = measure(task="training", method="lora", lora={"r": 2}, dtype="float32")
    assert record.status == "ok"
    assert record.parameters is not None
    assert record.parameters.trainable < record.parameters.total - PARAMETERS + 1
    assert record.components is not None
    assert record.components.optimizer_states_bytes >= 8 * record.parameters.trainable
    assert record.components.optimizer_states_bytes < record.components.weights_bytes


@pytest.mark.parametrize(
    ("fail_at", "phase"), [(1, "load"), (2, "load"), (3, "forward"), (4, "backward")]
)
def test_out_of_memory_is_a_result(fail_at: int, phase: str) -> None:
    counters = FakeCounters(
        fail_at,
        "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 2 GiB.",
    )
    record = measure(counters, task="training")
    assert record.status == "oom"
    assert record.report is None
    assert record.oom is not None
    assert (record.oom.phase, record.oom.asked_bytes) == (phase, 3 * 2**29)
    assert record.error is not None
    assert record.error.kind == "OutOfMemoryError"
    assert record.error.message.startswith(
        f"out of GPU memory in {phase}, asking for 1.61 GB (1.50 GiB) with "
    )
    assert Record.from_json(record.to_json()) == record


def test_the_allocator_s_own_number_goes_before_the_message_s() -> None:
    counters = FakeCounters(1, "CUDA out of memory. Tried to allocate 1.50 GiB.")
    counters.shortage = Shortage(asked_bytes=1610612800, total_bytes=2**31, free_bytes=5)
    record = measure(counters)
    assert record.oom is not None
    assert (record.oom.asked_bytes, record.oom.free_bytes) == (1610612800, 5)


def test_other_libraries_out_of_memory_is_the_same_result() -> None:
    class Cublas(FakeCounters):
        def start(self) -> None:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    record = measure(Cublas())
    assert record.status == "oom"
    assert record.oom is not None
    assert record.oom.asked_bytes is None


def test_another_error_is_not_out_of_memory() -> None:
    class Broken(FakeCounters):
        def start(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(Broken())
    with pytest.raises(ModelError):
        measure(model={**LLAMA, "hidden_act": "no such function"})


def test_what_makes_a_figure_doubtful_is_flagged() -> None:
    counters = FakeCounters(alone=False)
    counters.retries = 2
    record = measure(counters, gpu="T4", max_new_tokens=1)
    assert [flag for flag in record.flags if "not committed" not in flag] == [
        "the allocator retried 2 times after freeing its cache",
        "another process was on the GPU: the device counter is not known",
        "the case names T4, but this GPU has another memory size",
    ]
    assert record.peak is not None
    assert record.peak.device_bytes is None
    assert names(record) == ["load", "prefill"]


def test_a_run_that_shares_the_card_is_held_to_its_share_and_says_so() -> None:
    counters = FakeCounters(alone=False)
    record = measure(counters, HowToRun(share_bytes=10**9), max_new_tokens=1)
    assert counters.calls[:2] == ["start", f"limit {10**9}"]
    assert record.measurement is not None
    assert record.measurement.share_bytes == 10**9
    assert record.measurement.context_bytes is None
    assert record.peak is not None
    assert record.peak.device_bytes is None
    # That others are on the card is as it was meant, and no reason to doubt the allocator.
    assert [flag for flag in record.flags if "not committed" not in flag] == []
    assert "the card was shared with other cases: the device counter is not known" in (
        record.assumptions
    )


def test_the_allocation_history_is_written(tmp_path: Path) -> None:
    counters = FakeCounters()
    case = Case.from_dict({"model": LLAMA, "sequence_length": 4, "max_new_tokens": 1})
    target = tmp_path / "history.pickle"
    with counters.live:
        measure_case(case, HowToRun(snapshot=target), counters=counters, device="cpu")
    assert counters.calls[:2] == ["start", "record"]
    assert target.read_text() == "history"


def test_a_checkpoint_s_weights_are_loaded_and_said_to_be(tmp_path: Path) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        **{key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    record = measure(model=str(tmp_path), dtype="float16", max_new_tokens=1)
    assert record.status == "ok"
    assert record.measurement is not None
    assert record.measurement.weights_source == "checkpoint"
    assert record.assumptions[0] == "measured on the GPU, with checkpoint weights"


def test_without_a_gpu_the_counters_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentUnavailable, match="torch finds no CUDA GPU") as caught:
        CudaCounters().start()
    assert caught.value.exit_code == 4


SELECTIVE = {"gradient_checkpointing": True, "recompute_granularity": "selective"}
WIDER = {**LLAMA, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 1000}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "sgd", "momentum": 0.9, "gradient_checkpointing": True},
        {"optimizer": "adafactor", "gradient_accumulation_steps": 2},
        {"method": "lora", "mixed_precision": "bf16"},
        {"attention": "eager", **SELECTIVE},
    ],
    ids=["full", "sgd-checkpointing", "adafactor-accumulation", "lora-autocast", "selective"],
)
def test_the_own_loop_needs_what_transformers_trainer_needs(fields: dict[str, Any]) -> None:
    shape = {"model": WIDER, "dtype": "float32", "batch_size": 4, "sequence_length": 64}
    own, trainer = (
        measure(how=HowToRun(loop=loop), task="training", **shape, **fields)
        for loop in (OWN_LOOP, TRAINER_LOOP)
    )
    assert (own.loop, trainer.loop) == ("own", "trainer")
    assert names(own) == names(trainer)
    assert own.measurement is not None
    assert trainer.measurement is not None
    # The data set is in this device's memory, too, because this device is the CPU.
    for ours, theirs in zip(own.measurement.phases, trainer.measurement.phases, strict=True):
        assert ours.peak.allocated_bytes == pytest.approx(theirs.peak.allocated_bytes, rel=0.01)
        assert ours.end.allocated_bytes == pytest.approx(theirs.end.allocated_bytes, rel=0.01)
    assert own.components is not None
    assert trainer.components is not None
    for name in ("weights_bytes", "gradients_bytes", "optimizer_states_bytes"):
        assert getattr(own.components, name) == getattr(trainer.components, name), name


def test_attention_that_is_recomputed_keeps_no_scores() -> None:
    shape = {"model": WIDER, "attention": "eager", "batch_size": 4, "sequence_length": 128}
    ends = [
        next(phase.end_allocated_bytes for phase in record.phases if phase.name == "forward")
        for record in (measure(task="training", **shape, **fields) for fields in (SELECTIVE, {}))
    ]
    softmax_bytes = 4 * 4 * WIDER["num_attention_heads"] * 128**2
    assert ends[1] - ends[0] > WIDER["num_hidden_layers"] * softmax_bytes


def test_trainer_keeps_no_logits() -> None:
    with pytest.raises(UnsupportedError, match="keep_logits is for the own loop"):
        measure(how=HowToRun(loop=TRAINER_LOOP), task="training", keep_logits=True)


def test_a_measurement_is_one_gpus() -> None:
    with pytest.raises(UnsupportedError, match="use gpumem estimate or gpumem trace"):
        measure(task="training", parallelism={"sp_size": 2}, sequence_length=64)
