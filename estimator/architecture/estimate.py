"""From a case to a `MemoryReport` of source `architecture`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from estimator.architecture.adapter_targets import targets_passed_over
from estimator.architecture.context import PAGE
from estimator.architecture.history import (
    MOST_EVENTS,
    PLAYED_BELOW_BYTES,
    as_expected,
    as_played,
)
from estimator.architecture.inference import play_inference
from estimator.architecture.inventory import Inventory, inventory
from estimator.architecture.run import Run
from estimator.architecture.supported import as_supported, refuse_unknown
from estimator.architecture.training import play_training
from estimator.case import Case, scaler_lines, sequence_parallel_lines
from estimator.config_source import ModelConfig, load_config
from estimator.families import parse_spec
from estimator.gpus import workspace_bytes
from estimator.losses import LOSS_LINES
from estimator.report import NO_INTERVAL, Beyond, Components, MemoryReport, Parameters, Peak
from estimator.spec import ModelSpec

if TYPE_CHECKING:
    from estimator.architecture.segments import Segments


def estimate_architecture(case: Case, history: bool = True) -> MemoryReport:
    """Return what the architecture formulas say of a case.

    Args:
        history: play a small run block by block, for the rests that blocks keep of earlier ones;
            without it every block has its expected size, and all are smooth in batch and length.

    Raises:
        UnsupportedError: a model type or a setting without a formula; it names the way out.
        ModelError: the configuration cannot be read or is impossible.
    """
    asked = case.to_dict()
    config = load_config(case.model)
    spec = parse_spec(config)
    refuse_unknown(case, spec)
    absent = () if case.lora is None else targets_passed_over(spec, case.lora)
    case, lines = as_supported(case, spec)
    if absent:
        lines += (f"{spec.name} has no {', '.join(absent)}: peft passes over such targets",)
    items = inventory(spec, case.lora)
    run = (play_training if case.training else play_inference)(case, spec, items, Run())
    played = _played_history(case, spec, items, run) if history else None
    found = as_expected(run) if played is None else as_played(run, played)
    components = Components.from_names(found.sizes)
    label = found.instant.label
    total = items.base_count + items.adapter_count
    trains = items.adapter_count if case.lora else sum(items.base) - spec.fixed_count
    return MemoryReport(
        source="architecture",
        case=asked,
        parameters=Parameters(total=total, trainable=trains if case.training else 0),
        peak=Peak.deferred(
            partial(_beyond, case, spec, items, found.allocated, played),
            phase=found.instant.phase,
            requested_bytes=run.highest_requested,
            allocated_bytes=found.allocated,
            instant=label,
            reason=f"{label}; {components.largest()}",
        ),
        phases=found.phases,
        components=components,
        assumptions=(
            *_assumptions(case, config),
            *_kernel_line(spec),
            *_checkpoint_line(config, spec),
            *lines,
        ),
    )


def _played_history(case: Case, spec: ModelSpec, items: Inventory, run: Run) -> Segments | None:
    """Play a small run block by block; None for one whose rests are a small share, or too long."""
    if run.highest.allocated > PLAYED_BELOW_BYTES:
        return None
    from estimator.architecture.segments import TooManyEvents, play_segments

    try:
        return play_segments(case, spec, items, most_events=MOST_EVENTS)
    except TooManyEvents:
        return None


def play_within(case: Case, capacity_bytes: int) -> Segments:
    """Play a case's run on a card that can give PyTorch so many bytes.

    Raises:
        GpumemError: as `estimate_architecture`.
    """
    from estimator.architecture.segments import play_segments

    spec = parse_spec(load_config(case.model))
    refuse_unknown(case, spec)
    case, _ = as_supported(case, spec)
    return play_segments(case, spec, inventory(spec, case.lora), capacity_bytes)


def _beyond(
    case: Case, spec: ModelSpec, items: Inventory, allocated_bytes: int, played: Segments | None
) -> Beyond:
    """Work out reserved and device bytes; kept out of the estimate, which takes a tenth of it.

    Args:
        played: the run on a card without a limit, where it has been played.
    """
    from estimator.architecture.segments import TooManyEvents, play_segments
    from estimator.counters import beyond_allocated

    def play(capacity_bytes: int | None) -> Segments:
        if capacity_bytes is None and played is not None:
            return played
        return play_segments(case, spec, items, capacity_bytes)

    try:
        return beyond_allocated(case, allocated_bytes, play)
    except TooManyEvents:
        return Beyond()


_CACHES = {
    "dynamic": "a cache that grows by concatenation",
    "static": "a cache with room for all tokens from the start, and no torch.compile",
    "quantized": "optimum-quanto's 4-bit cache: groups of 64, the newest 127 tokens as they are",
    "paged": f"pages of {PAGE} tokens, as vLLM's: attention reads them in place, windows keep all",
}


def _checkpoint_line(config: ModelConfig, spec: ModelSpec) -> tuple[str, ...]:
    """Say what a checkpoint holds, and where its configuration makes another model."""
    if config.checkpoint is None:
        return ()
    held, head = config.checkpoint.parameters, spec.head.weight_count if spec.tied else 0
    # A tied head may be stored a second time.
    if held in (spec.parameters, spec.parameters + head):
        return (config.checkpoint.sentence,)
    return (
        f"{config.checkpoint.sentence}, but its configuration makes {spec.parameters}: the "
        "estimate follows the configuration",
    )


def _kernel_line(spec: ModelSpec) -> tuple[str, ...]:
    if spec.kernels is None:
        return ()
    return (
        f"without {spec.kernels}'s kernels: transformers' own code, as where the package is not "
        "installed; with it much less is needed",
    )


def _assumptions(case: Case, config: ModelConfig) -> tuple[str, ...]:
    lines = [*config.notes, "full, unpadded batches"]
    where = f"on {case.gpu}" if case.gpu else "before Hopper (no gpu named)"
    lines.append(f"cuBLAS workspaces as {where}: {workspace_bytes(case.gpu)} B a handle")
    if case.stack is not None:
        lines.append(f"what the stack {case.stack} did otherwise (docs/stacks.md)")
    if case.training:
        version = "5" if case.stack is None else f"as {case.stack} has it"
        lines.append(f"Trainer's step of transformers {version}, read from the second step on")
        lines += scaler_lines(case)
        lines += sequence_parallel_lines(case)
        if case.recomputes_attention:
            lines.append(
                "the attention function of each layer is checkpointed (torch's, non-reentrant), "
                "nothing else"
            )
        lines += LOSS_LINES[case.loss]
        if case.loss == "standard" and not case.keep_logits:
            lines.append("the loop lets go of the logits before backward, as Trainer does")
    elif case.stack is None:
        lines.append(f"generate: the last token's logits only, {_CACHES[case.cache]}")
    if case.mixed_precision is not None and not case.training:
        lines.append("autocast around each forward pass, as accelerate prepares a model")
    if case.attention == "sdpa":
        lines.append("sdpa chooses flash, memory-efficient or math as CUDA does before Hopper")
    return (*lines, NO_INTERVAL)
