"""From a case to a `MemoryReport` of source `architecture`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from estimator.architecture.adapter_targets import targets_passed_over
from estimator.architecture.attentions import recomputable
from estimator.architecture.context import PAGE, prepared, stack_of
from estimator.architecture.failing_runs import refuse_failing
from estimator.architecture.history import (
    MOST_EVENTS,
    PLAYED_BELOW_BYTES,
    as_expected,
    as_played,
)
from estimator.architecture.inference import play_inference
from estimator.architecture.inventory import Inventory, inventory
from estimator.architecture.parts import known_activation
from estimator.architecture.run import Run
from estimator.architecture.sequence_parallel import refuse_spread
from estimator.architecture.stretches import distinct_layers
from estimator.architecture.training import play_training
from estimator.case import Case, scaler_lines, sequence_parallel_lines
from estimator.config_source import ModelConfig, load_config
from estimator.errors import CaseError, UnsupportedError
from estimator.families import parse_spec
from estimator.gpus import workspace_bytes
from estimator.losses import LOSS_LINES, check_loss
from estimator.report import NO_INTERVAL, Beyond, Components, MemoryReport, Parameters, Peak
from estimator.spec import LinearRecurrence, Mlp, ModelSpec, Moe, Norm

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
    _refuse(case, spec)
    absent = () if case.lora is None else targets_passed_over(spec, case.lora)
    case, lines = _as_supported(case, spec)
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
    _refuse(case, spec)
    case, _ = _as_supported(case, spec)
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


def _as_supported(case: Case, spec: ModelSpec) -> tuple[Case, tuple[str, ...]]:
    """Return the case with the attention that transformers takes for it, and what to say of it.

    Raises:
        UnsupportedError: an attention that the class, or these formulas, do not know.
    """
    if case.checkpoints_layers and not spec.checkpointable:
        raise UnsupportedError(
            f"{spec.model_type} of transformers supports no gradient checkpointing"
        )
    if case.parallelism is not None:
        refuse_spread(case, spec)
    if case.recomputes_attention and not recomputable(spec):
        raise UnsupportedError(
            f"the layers of {spec.model_type} have no attention function of their own that could "
            "be recomputed alone: use recompute_granularity full"
        )
    if not case.training and case.cache not in spec.caches:
        raise UnsupportedError(
            f"the architecture formulas do not know cache {case.cache!r} of {spec.model_type}: "
            f"use cache {' or '.join(spec.caches)}"
        )
    slides = any(layer.attention.window is not None for layer in distinct_layers(spec))
    if not case.training and case.cache == "quantized" and slides:
        raise UnsupportedError(
            f"cache is 'quantized', but transformers has it for full attention only, and "
            f"{spec.name} has sliding layers: use cache dynamic or static"
        )
    if case.cache == "paged" and case.mixed_precision is not None:
        raise UnsupportedError(
            f"mixed_precision is {case.mixed_precision!r}, but engines with a paged cache know no "
            "autocast: use cache dynamic, or no mixed_precision"
        )
    if not case.training and case.cache != "dynamic" and stack_of(case).tuple_cache:
        raise UnsupportedError(
            f"cache is {case.cache!r}, but generate of the stack {case.stack} hands keys and "
            "values on as tuples: use cache dynamic, or another stack"
        )
    refuse_failing(case, spec)
    if case.attention in spec.attentions:
        return case, _quantization_lines(case, spec)
    if case.attention == "sdpa":
        line = (
            f"{spec.model_type} supports no sdpa: its attention is eager, as transformers chooses"
        )
        return replace(case, attention="eager"), (line, *_quantization_lines(case, spec))
    raise UnsupportedError(
        f"the architecture formulas do not know attention {case.attention!r} of "
        f"{spec.model_type}: use attention {' or '.join(spec.attentions)}"
    )


def _quantization_lines(case: Case, spec: ModelSpec) -> tuple[str, ...]:
    linears = (linear for layer in distinct_layers(spec) for linear in layer.linears)
    if case.quantization is None or not any(linear.own_class for linear in linears):
        return ()
    return (
        f"transformers quantizes none of {spec.model_type}'s linears: they are of a class of "
        "their own",
    )


def _refuse(case: Case, spec: ModelSpec) -> None:
    """Say clearly what has no formula yet, and what no library runs."""
    _refuse_dropout_on_experts(case, spec)
    _refuse_adapters_on_routers(case, spec)
    check_loss(case.loss, spec)
    reasons = {
        f"quantization {case.quantization!r} of {spec.model_type} (its code multiplies by weights "
        "itself)": case.quantization is not None and not spec.quantizable,
        f"decoding of several sequences with {spec.name} (its own code mixes them up)": (
            spec.decodes_alone and case.batch_size > 1 and (case.max_new_tokens or 1) > 1
        ),
        f"autocast of {spec.model_type}, whose layers share weights that it casts once": (
            case.mixed_precision is not None
            and any(layer.shared and not layer.shared.counted for layer in distinct_layers(spec))
            and not (case.training and case.method == "lora")
        ),
        f"autocast or an int8 base of {spec.model_type}'s recurrences": _recurs(spec)
        and (case.mixed_precision is not None or (case.training and case.quantization == "int8")),
        f"stack {case.stack!r} with other norms than RMSNorm": _norms_unknown(case, spec),
        f"stack {case.stack!r} without autocast on a quantized base that was not prepared, whose "
        "fp32 hidden states no head in half precision multiplies": _head_too_narrow(case),
        f"autocast of {spec.model_type}": (
            case.mixed_precision is not None and spec.stream_ends is not None
        ),
        f"training of {spec.model_type} on a quantized base (its code clamps a weight)": (
            case.training and case.quantization is not None and spec.stream_ends is not None
        ),
        "DoRA on stacked experts (peft has none)": _dora_experts(case, spec),
        f"adapters on the experts of {spec.model_type}, which run one after the other (name other "
        "target_modules)": _looped_experts_adapted(case, spec),
        **{f"activation {name!r}": True for name in _unknown_activations(spec)},
    }
    for what, present in reasons.items():
        if present:
            raise UnsupportedError(
                f"the architecture formulas do not know {what} yet: use gpumem trace, "
                "gpumem profile on a GPU, or --formulas article"
            )


def _unknown_activations(spec: ModelSpec) -> list[str]:
    """Activations without a formula; xIELU, which has parameters, has one in a plain MLP alone."""
    unknown = []
    for layer in distinct_layers(spec):
        if layer.mlp is None:
            continue
        name = layer.mlp.activation
        plain = isinstance(layer.mlp, Mlp) and layer.mlp.gate is None and not layer.mlp.fused_gate
        alone = plain and layer.recipe == "pre_norm" and not layer.parallel
        if not known_activation(name) or (name == "xielu" and not alone):
            unknown.append(name)
    return unknown


def _recurs(spec: ModelSpec) -> bool:
    mixers = (layer.attention.mixer for layer in distinct_layers(spec))
    return any(isinstance(mixer, LinearRecurrence) for mixer in mixers)


def _dora_experts(case: Case, spec: ModelSpec) -> bool:
    if case.lora is None or not case.lora.use_dora:
        return False
    targets = case.lora.target_modules
    return any(mixture.adapted(targets) for mixture in _mixtures(spec))


def _looped_experts_adapted(case: Case, spec: ModelSpec) -> bool:
    if case.lora is None:
        return False
    targets = case.lora.target_modules
    return any(mixture.looped and mixture.adapted(targets) for mixture in _mixtures(spec))


def _mixtures(spec: ModelSpec) -> list[Moe]:
    return [layer.mlp for layer in distinct_layers(spec) if isinstance(layer.mlp, Moe)]


def _refuse_dropout_on_experts(case: Case, spec: ModelSpec) -> None:
    """peft adapts stacked experts as parameters, on whose input no dropout can sit."""
    lora = case.lora
    if lora is None or not lora.lora_dropout:
        return
    if any(mixture.adapted(lora.target_modules) for mixture in _mixtures(spec)):
        raise CaseError(
            f"lora_dropout is {lora.lora_dropout}, but peft allows only 0 where adapters sit on "
            f"the stacked experts of {spec.name}: set it to 0, or name other target_modules",
            field="lora.lora_dropout",
        )


def _refuse_adapters_on_routers(case: Case, spec: ModelSpec) -> None:
    """A router that returns several tensors fails inside peft's wrapper of a linear."""
    lora = case.lora
    _refuse_unadaptable(case, spec)
    if lora is None:
        return
    names = {mixture.router_name for mixture in _mixtures(spec)} - {None}
    if not names:
        return
    if lora.target_modules == "all-linear" or names & set(lora.target_modules):
        raise CaseError(
            f"target_modules {lora.target_modules!r} put an adapter on the router of {spec.name}, "
            "where peft fails: name others, such as q_proj and v_proj",
            field="lora.target_modules",
        )


def _refuse_unadaptable(case: Case, spec: ModelSpec) -> None:
    """peft refuses what Mamba's kernels would pass by (`_check_lora_target_modules_mamba`)."""
    if case.lora is None or not spec.unadaptable:
        return
    targets = case.lora.target_modules
    if targets == "all-linear" or set(spec.unadaptable) & set(targets):
        raise CaseError(
            f"target_modules {targets!r} put an adapter on {', '.join(spec.unadaptable)} of "
            f"{spec.name}, which peft refuses in models of type {spec.model_type}: name others, "
            "such as in_proj",
            field="lora.target_modules",
        )


def _head_too_narrow(case: Case) -> bool:
    """Whether fp32 norms hand the head what its weights cannot be multiplied with: torch refuses
    products of two dtypes, on a GPU if not on meta tensors."""
    widened = case.quantization is not None and stack_of(case).fp32_norms_on_quantized
    if not widened or prepared(case):
        return False
    return case.mixed_precision is None and case.dtype != "float32"


def _norms_unknown(case: Case, spec: ModelSpec) -> bool:
    """Whether a stack casts norms to fp32 whose formula is not that of Llama's."""
    if case.quantization is None or not stack_of(case).fp32_norms_on_quantized:
        return False
    layers = distinct_layers(spec)
    idle = (module for layer in layers for module in layer.idle if isinstance(module, Norm))
    norms = (spec.final_norm, *(layer.input_norm for layer in layers), *idle)
    return any(norm is None or norm.kind != "rms" for norm in norms)


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
