"""One measured run: the body of a CUDA worker.

Builds the model and plays the loop with the very code that the trace uses (`profiler.build`,
`profiler.loops`), and reads the allocator between the phases. Training is read from the second
step on, because the optimizer's states first appear in the first; of inference the only
generate is read, without a warm-up, because a warm-up would change the first peak.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from estimator.case import Case
from estimator.errors import UnsupportedError
from estimator.gpus import find_gpu
from estimator.report import Components, MemoryReport, Parameters, Peak, Phase
from profiler import tensors
from profiler.counters import Counters, CudaCounters, DeviceReading
from profiler.environment import collect_environment
from profiler.meter import PhaseMeter, highest
from profiler.provenance import Stopwatch
from profiler.record import (
    TRAINER_LOOP,
    Counts,
    MeasuredPhase,
    Measurement,
    Provenance,
    Record,
)
from profiler.requests import AS_USUAL, HowToRun
from profiler.shortage import describe_shortage, is_shortage, shortage_sentence

_SAME_CARD = 0.02
_SEED = 0


def measure_case(
    case: Case,
    how: HowToRun = AS_USUAL,
    *,
    counters: Counters | None = None,
    device: str = "cuda",
) -> Record:
    """Measure one case in this process, which must be fresh, and return its record.

    Out of GPU memory is a result: a record of status `oom`.

    Args:
        case: the run.
        how: the repeat, the loop, the allocation history, the share of the card.
        counters: other counters than CUDA's, for tests.
        device: the torch device to run on.

    Raises:
        EnvironmentUnavailable: torch cannot use a GPU here.
        GpumemError: the case cannot be built or run.
    """
    watch = Stopwatch()
    environment = collect_environment("cuda")
    run = _Run(case, how, CudaCounters() if counters is None else counters, device)
    try:
        run.counters.start()
        if how.share_bytes is not None:
            run.counters.limit(how.share_bytes)
        run.play()
    except Exception as error:
        if not is_shortage(error):
            raise
        oom = describe_shortage(error, run.counters, run.meter.current, run.failed_peak())
        provenance = watch.provenance(how.repeat)
        return Record.failed(
            case,
            "cuda",
            "oom",
            shortage_sentence(oom),
            environment,
            provenance,
            kind=type(error).__name__,
            oom=oom,
            measurement=run.measurement(_flags(case, provenance, None, how)),
            loop=how.loop,
        )
    provenance = watch.provenance(how.repeat)
    measurement = run.measurement(_flags(case, provenance, run.device_reading, how))
    return Record.from_report(run.report(), environment, provenance, measurement, how.loop)


class _Run:
    """One run, and what has been read of it so far."""

    def __init__(self, case: Case, how: HowToRun, counters: Counters, device: str) -> None:
        from profiler.loops import TRAINING_STEPS

        self.case = case
        self.how = how
        self.counters = counters
        self.device = device
        self.steps = TRAINING_STEPS if case.training else 1
        self.meter = PhaseMeter(counters, 1 if case.training else 0, self._weigh)
        self.device_reading: DeviceReading | None = None
        self._held: dict[str, dict[str, int]] = {}
        self._workspace_bytes = 0
        self._retries = self._ooms = 0
        self._parameters: Parameters | None = None
        self._weights_source: Literal["random", "checkpoint"] | None = None
        self._model: Any = None
        self._optimizer: Any = None
        self._cache: Any = None

    def play(self) -> None:
        """Build the model and run the loop; the phases are in the meter then."""
        import torch

        from profiler import build, generation, loops
        from profiler.attention_functions import attention_of

        if self.case.parallelism is not None:
            raise UnsupportedError(
                f"a measurement runs on one GPU, but parallelism.sp_size is {self.case.sp_size}: "
                "use gpumem estimate or gpumem trace"
            )
        torch.manual_seed(_SEED)
        snapshot = self.how.snapshot
        if snapshot is not None:
            self.counters.record_history()
        case = self.case
        self._weights_source = "checkpoint" if build.checkpoint_folder(case) else "random"
        self._model = build.build_model(case, self.device)
        self._parameters = tensors.count_parameters(self._model, case.training)
        vocabulary = self._model.config.get_text_config().vocab_size
        batch = loops.make_batch(case, vocabulary, self.device)
        if case.training and self.how.loop == TRAINER_LOOP:
            from profiler import trainer_loop

            with attention_of(case):
                trainer_loop.training_steps(
                    self._model, batch, case, self.meter, self._hold_optimizer, steps=self.steps
                )
        elif case.training:
            self._optimizer = build.build_optimizer(case, self._model)
            with attention_of(case):
                loops.training_steps(
                    self._model, self._optimizer, batch, case, self.meter, steps=self.steps
                )
        else:
            generation.generate(self._model, batch, case, self.meter, self._hold_cache)
        last = self.meter.finish()
        self._retries, self._ooms = last.retries, last.ooms
        self.device_reading = self.counters.read_device()
        if self.how.share_bytes is not None:
            # What the driver counts is then everybody's.
            self.device_reading = replace(self.device_reading, context_bytes=None, alone=None)
        if snapshot is not None:
            self.counters.write_history(snapshot)
        self._workspace_bytes = self.counters.free_workspaces()

    def report(self) -> MemoryReport:
        """Return the report of a run that was played to its end."""
        assert self._parameters is not None
        phases = self.meter.phases
        peak = highest([phase.peak for phase in phases])
        at = max(phases, key=lambda phase: phase.peak.allocated_bytes)
        context_bytes = None if self.device_reading is None else self.device_reading.context_bytes
        return MemoryReport(
            source="cuda",
            case=self.case.to_dict(),
            parameters=self._parameters,
            peak=Peak(
                phase=at.name,
                requested_bytes=peak.requested_bytes,
                allocated_bytes=peak.allocated_bytes,
                reserved_bytes=peak.reserved_bytes,
                device_bytes=(
                    None if context_bytes is None else peak.reserved_bytes + context_bytes
                ),
            ),
            phases=tuple(
                Phase(phase.name, phase.peak.allocated_bytes, phase.end.allocated_bytes)
                for phase in phases
            ),
            components=self._components(at),
            assumptions=self._assumptions(),
        )

    def measurement(self, flags: tuple[str, ...]) -> Measurement:
        """Return what was read beside the report, as far as the run came."""
        read = self.device_reading
        if self._retries:
            flags = (f"the allocator retried {self._retries} times after freeing its cache", *flags)
        return Measurement(
            phases=self.meter.phases,
            allocator_retries=self._retries,
            ooms=self._ooms,
            context_bytes=None if read is None else read.context_bytes,
            driver_used_bytes=None if read is None else read.used_bytes,
            device_total_bytes=None if read is None else read.total_bytes,
            weights_source=self._weights_source,
            steps=self.steps,
            share_bytes=self.how.share_bytes,
            flags=flags,
        )

    def failed_peak(self) -> Counts | None:
        """Return the highest counters of the phase in which the run failed, if it had a context."""
        try:
            reading = self.counters.read()
        except RuntimeError:
            return None
        self._retries, self._ooms = reading.retries, reading.ooms
        return reading.peak

    def _hold_optimizer(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def _hold_cache(self, cache: Any) -> None:
        self._cache = cache

    def _weigh(self, phase: str) -> None:
        """Add up the real tensors at the end of a phase."""
        groups: dict[str, Any] = {"weights": tensors.model_tensors(self._model)}
        if self._optimizer is not None:
            groups["optimizer_states"] = tensors.optimizer_tensors(self._optimizer)
            groups["gradients"] = tensors.gradients(self._model)
        if self._cache is not None:
            groups["kv_cache"] = tensors.cache_tensors(self._cache)
        kind = self.device.partition(":")[0]
        self._held[phase] = {
            name: tensors.storage_bytes(group, kind) for name, group in groups.items()
        }

    def _components(self, at: MeasuredPhase) -> Components:
        """Say what is known to be alive at the peak; the rest is unattributed.

        Gradients are whole when the optimizer steps; inside backward they come one by one, and
        the counters do not tell how many there are at the peak.
        """
        sizes = dict(self._held[at.name])
        if "gradients" in sizes:
            whole = at.name == "optimizer_step"
            sizes["gradients"] = self._held["backward"]["gradients"] if whole else 0
        if at.name != "load":
            sizes["workspace"] = self._workspace_bytes
        sizes["unattributed"] = at.peak.allocated_bytes - sum(sizes.values())
        return Components.from_names(sizes)

    def _assumptions(self) -> tuple[str, ...]:
        lines = [f"measured on the GPU, with {self._weights_source} weights"]
        if self.how.loop == TRAINER_LOOP:
            lines.append("transformers.Trainer played the loop")
        if self.how.share_bytes is not None:
            lines.append("the card was shared with other cases: the device counter is not known")
        if self.case.training:
            lines.append(f"read over steps 2 to {self.steps}")
            lines.append(
                "activations, logits and temporaries, and gradients inside backward, are not "
                "told apart by the counters: they are in unattributed"
            )
        else:
            lines.append("logits and temporaries are not told apart: they are in unattributed")
        return tuple(lines)


def _flags(
    case: Case, provenance: Provenance, device: DeviceReading | None, how: HowToRun
) -> tuple[str, ...]:
    """Return why the figures may not be trusted, or not where one would think."""
    flags = []
    if provenance.dirty:
        flags.append("the code had changes that are not committed")
    if device is None:
        return tuple(flags)
    if device.alone is False:
        flags.append("another process was on the GPU: the device counter is not known")
    elif device.alone is None and how.share_bytes is None:
        flags.append("whether another process was on the GPU is not known (no NVML)")
    if case.gpu is not None and device.total_bytes is not None:
        card = find_gpu(case.gpu)
        if abs(device.total_bytes - card.memory_bytes) > _SAME_CARD * card.memory_bytes:
            flags.append(f"the case names {card.name}, but this GPU has another memory size")
    return tuple(flags)
