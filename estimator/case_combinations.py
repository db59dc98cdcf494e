"""Which fields of a case go together, and what one leaves to another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from estimator.case_fields import Lora, Parallelism
from estimator.errors import CaseError, show_value

if TYPE_CHECKING:
    from estimator.case import Case


def complete(case: Case) -> Case:
    """Check combinations, and fill in what depends on other fields.

    Raises:
        CaseError: with the field, its value and the one that it does not go together with.
    """
    if case.double_quantization and case.quantization not in ("nf4", "fp4"):
        _impossible(case, "double_quantization", "needs quantization nf4 or fp4", case.quantization)
    if case.method == "full" and case.lora is not None:
        _impossible(case, "lora", "needs method lora", case.method)
    if case.recompute_granularity != "full" and not case.gradient_checkpointing:
        _impossible(case, "recompute_granularity", "needs gradient_checkpointing true", False)
    if case.recomputes_attention and case.stack is not None:
        _impossible(case, "recompute_granularity", "is not for older stacks", case.stack)
    if case.parallelism is not None:
        _check_parallelism(case)
    if case.momentum and case.optimizer not in ("sgd", "rmsprop"):
        _impossible(case, "momentum", "needs optimizer sgd or rmsprop", case.optimizer)
    if case.training:
        if case.quantization is not None and case.method == "full":
            _impossible(
                case, "quantization", "cannot be trained in full: use method lora", case.method
            )
        if case.max_new_tokens not in (None, 128):
            _impossible(case, "max_new_tokens", "is for inference only", case.task)
        if case.cache != "dynamic":
            _impossible(case, "cache", "is for inference only", case.task)
        if case.loss != "standard":
            _check_fused_loss(case)
        case = replace(case, max_new_tokens=None)
    else:
        for name in ("gradient_checkpointing", "keep_logits", "momentum"):
            if getattr(case, name):
                _impossible(case, name, "is for training only", case.task)
        if case.gradient_accumulation_steps != 1:
            _impossible(case, "gradient_accumulation_steps", "is for training only", case.task)
        if case.loss != "standard":
            _impossible(case, "loss", "is for training only", case.task)
        if case.max_new_tokens is None:
            case = replace(case, max_new_tokens=128)
    if case.method == "lora" and case.lora is None:
        case = replace(case, lora=Lora())
    if case.gpu is not None:
        from estimator.gpus import find_gpu

        case = replace(case, gpu=find_gpu(case.gpu).name)
    return case


def _check_fused_loss(case: Case) -> None:
    """Check what a loss that multiplies by the head's weight itself goes together with."""
    if case.keep_logits:
        _impossible(case, "keep_logits", "needs loss standard: others make no logits", case.loss)
    if case.stack is not None:
        _impossible(case, "stack", "needs loss standard: it is older than the others", case.loss)
    targets = () if case.lora is None else case.lora.target_modules
    if isinstance(targets, tuple) and "lm_head" in targets:
        raise CaseError(
            f"lora.target_modules is {show_value(list(targets))}, but loss {case.loss!r} reads the "
            "weight of lm_head without its adapter, which would never train: leave it out",
            "lora.target_modules",
        )


def _check_parallelism(case: Case) -> None:
    name = "parallelism"
    if not case.training:
        _impossible(case, name, "is for training only", case.task)
    if case.attention == "eager":
        _impossible(case, name, "needs attention sdpa or flash_attention_2", case.attention)
    if case.loss != "standard":
        _impossible(case, name, "needs loss standard", case.loss)
    if case.recomputes_attention:
        _impossible(case, name, "needs recompute_granularity full", case.recompute_granularity)
    if case.stack is not None:
        _impossible(case, name, "is not for older stacks", case.stack)
    if case.sequence_length % case.sp_size:
        _impossible(case, name, "must divide sequence_length", case.sequence_length)


def _impossible(case: Case, name: str, why: str, other: Any) -> None:
    value = getattr(case, name)
    shown = value.to_dict() if isinstance(value, (Lora, Parallelism)) else value
    raise CaseError(
        f"{name} is {show_value(shown)}, but {why} (here it meets {show_value(other)})", name
    )
