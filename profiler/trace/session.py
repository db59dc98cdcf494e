"""One traced run: build on meta, play the loop under the recorder, replay, report."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from estimator.case import Case, scaler_lines, sequence_parallel_lines
from estimator.errors import UnsupportedError
from estimator.gpus import workspace_bytes
from estimator.losses import LOSS_LINES
from estimator.report import MemoryReport, Parameters, Peak
from profiler import build, generation, loops, tensors, ulysses
from profiler.attention_functions import attention_of
from profiler.trace.autocast import replaced_functions
from profiler.trace.bitsandbytes_paths import copied_weights
from profiler.trace.cuda_paths import as_on_cuda
from profiler.trace.decoding import shortened
from profiler.trace.modules import Modules
from profiler.trace.recorder import Recorder
from profiler.trace.refusals import refused
from profiler.trace.replay import Replay, replay
from profiler.trace.timeline import Timeline

TRACED_STEPS = 2


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced run: the report, and what it was read from."""

    report: MemoryReport
    timeline: Timeline
    replay: Replay
    expandable: bool


def trace_case(case: Case) -> MemoryReport:
    """Trace a case and return what a GPU would need.

    Raises:
        UnsupportedError: the case cannot be traced; the message names the way out.
        ModelError: transformers refuses the model.
    """
    return trace_run(case).report


def trace_run(
    case: Case, expandable: bool = False, padded: bool = False, without: Collection[str] = ()
) -> Trace:
    """Trace a case and keep its timeline, for those who want to look into it.

    Args:
        expandable: the allocator's `expandable_segments:True`.
        padded: sequences differ in length, so that the mask is not all ones: attention is given
            a mask, and takes another kernel for it.
        without: scratch terms to leave out (names in `profiler.trace.scratch.NAMES`), to see what
            they are worth.

    Raises:
        UnsupportedError, ModelError: as `trace_case`.
    """
    if padded and case.attention == "flash_attention_2":
        raise UnsupportedError(
            "a padded batch under flash_attention_2 is unpadded by its lengths, which a trace does "
            "not know: trace it with attention sdpa or eager"
        )
    timeline, parameters, lines = _record(case, padded, without)
    result = replay(timeline, TRACED_STEPS - 1 if case.training else 0, expandable)
    report = MemoryReport(
        source="trace",
        case=case.to_dict(),
        parameters=parameters,
        peak=Peak(
            phase=result.peak_phase,
            requested_bytes=result.peak_requested_bytes,
            allocated_bytes=result.peak_allocated_bytes,
            reserved_bytes=result.peak_reserved_bytes,
            instant=result.instant,
            reason=result.reason,
        ),
        phases=result.phases,
        components=result.components,
        assumptions=(*_assumptions(case, expandable, padded), *_left_out(without), *lines),
    )
    return Trace(report, timeline, result, expandable)


def record_timeline(case: Case) -> tuple[Timeline, Parameters]:
    """Play a case on meta tensors and return its timeline and its parameter counts."""
    timeline, parameters, _ = _record(case)
    return timeline, parameters


def _record(
    case: Case, padded: bool = False, without: Collection[str] = ()
) -> tuple[Timeline, Parameters, tuple[str, ...]]:
    """Return the timeline, the parameter counts, and what was assumed of this model."""
    timeline = Timeline()
    # Before torch's functions are replaced: some models compile their own when imported.
    four_bits = case.quantization in ("nf4", "fp4")
    with copied_weights() if four_bits else contextlib.nullcontext():
        model = build.build_model(case, "meta")
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_on_cuda())
        if case.mixed_precision is not None:
            stack.enter_context(replaced_functions(loops.autocast_dtype(case)))
        if case.parallelism is not None:
            ulysses.check(case, model)
        config = model.config.get_text_config()
        modules = Modules(model)
        workspace = workspace_bytes(case.gpu)
        recorder = Recorder(timeline, config.vocab_size, workspace, modules, padded, without)
        recorder.register(tensors.model_tensors(model), "weights")
        modules.place_tensors(recorder)
        parameters = tensors.count_parameters(model, case.training)
        # Registered before the mode is active: a batch is there when the first step begins.
        batch = loops.make_batch(case, config.vocab_size, "meta")
        recorder.register(batch.values(), "temporaries")
        play = _train if case.training else _generate
        stack.enter_context(refused(case, recorder.answers.lines))
        stack.enter_context(modules.followed())
        stack.enter_context(attention_of(case))
        # What the run still holds at its end stays alive until the timeline is closed.
        held = play(case, model, batch, recorder)
        timeline.close()
        del held
    return timeline, parameters, (*_attention_line(case, model), *recorder.answers.lines)


def _attention_line(case: Case, model: Any) -> tuple[str, ...]:
    chosen = model.config._attn_implementation
    if case.attention != "sdpa":
        return ()
    if chosen != "sdpa":
        name = type(model.get_base_model() if case.lora is not None else model).__name__
        return (f"{name} supports no sdpa: its attention is {chosen}, as transformers chooses",)
    return ("sdpa chooses flash, memory-efficient or math as CUDA does before Hopper",)


def _train(case: Case, model: Any, batch: dict[str, Any], recorder: Recorder) -> Any:
    watcher = _TrainingWatcher(model, recorder)
    optimizer = build.build_optimizer(case, model)
    watcher.optimizer = optimizer
    with recorder:
        loops.training_steps(model, optimizer, batch, case, watcher, steps=TRACED_STEPS)
    return optimizer


class _TrainingWatcher:
    """Passes phases on, and names gradients and optimizer states where they can be seen."""

    def __init__(self, model: Any, recorder: Recorder) -> None:
        self._modules = recorder.modules
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._recorder = recorder
        self.optimizer: Any = None

    def step(self, index: int) -> None:
        if index:
            states = tensors.optimizer_tensors(self.optimizer)
            self._recorder.register(states, "optimizer_states")
            self._place_states()
        self._recorder.step(index)

    def _place_states(self) -> None:
        for parameter, state in self.optimizer.state.items():
            owner = self._modules.owner(parameter)
            if owner is not None:
                kept = [value for value in state.values() if isinstance(value, torch.Tensor)]
                self._recorder.place(kept, owner)

    def phase(self, name: str) -> None:
        grads = [p.grad for p in self._parameters if p.grad is not None]
        self._recorder.register(grads, "gradients")
        self._recorder.phase(name)


def _generate(case: Case, model: Any, batch: dict[str, Any], recorder: Recorder) -> Any:
    held: dict[str, Any] = {}

    def on_cache(cache: Any) -> None:
        recorder.register(tensors.cache_tensors(cache), "kv_cache")
        held["cache"] = cache

    base = model.get_base_model() if case.lora is not None else model
    with shortened(base, case), recorder:
        held["ids"] = generation.generate(model, batch, case, recorder, on_cache)
    return held


def _left_out(without: Collection[str]) -> tuple[str, ...]:
    return tuple(f"scratch left out on request: {name}" for name in without)


def _assumptions(case: Case, expandable: bool, padded: bool) -> tuple[str, ...]:
    import transformers

    lines = [
        f"simulated: torch {torch.__version__.split('+')[0]}, "
        f"transformers {transformers.__version__}, on meta tensors",
        "padded batches: the mask is not all ones" if padded else "full, unpadded batches",
        "cuBLAS workspaces as "
        + (f"on {case.gpu}" if case.gpu else "before Hopper (no gpu named)")
        + f": {workspace_bytes(case.gpu)} B a handle",
    ]
    if expandable:
        lines.append("the allocator with expandable_segments:True")
    lines += scaler_lines(case)
    lines += sequence_parallel_lines(case)
    if case.training:
        lines += LOSS_LINES[case.loss]
        lines.append("read from the second step on, as a profiler that skips the first would")
    elif case.max_new_tokens is not None and case.max_new_tokens - 1 > 3:
        also = "" if case.cache != "quantized" else ", and the last that quantizes all anew,"
        lines.append(f"decode: the first and the last two steps{also} are played, others skipped")
    return tuple(lines)
