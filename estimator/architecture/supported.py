"""What the architecture formulas can answer: which settings they refuse, and what transformers
takes in place of one that a class does not support."""

from __future__ import annotations

from dataclasses import replace

from estimator.architecture.attentions import recomputable
from estimator.architecture.context import prepared, stack_of
from estimator.architecture.failing_runs import refuse_failing
from estimator.architecture.parts import known_activation
from estimator.architecture.sequence_parallel import refuse_spread
from estimator.architecture.stretches import distinct_layers
from estimator.case import Case
from estimator.errors import CaseError, UnsupportedError
from estimator.losses import check_loss
from estimator.spec import LinearRecurrence, Mlp, ModelSpec, Moe, Norm


def as_supported(case: Case, spec: ModelSpec) -> tuple[Case, tuple[str, ...]]:
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


def refuse_unknown(case: Case, spec: ModelSpec) -> None:
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
