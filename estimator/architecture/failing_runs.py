"""Runs that transformers, peft or optimum-quanto stop with an error: they get no estimate.

Each is refused in one sentence that names the value and what would run instead.
"""

from __future__ import annotations

from estimator.architecture.quantized_cache import GROUP
from estimator.architecture.stretches import distinct_layers
from estimator.case import Case
from estimator.errors import CaseError, UnsupportedError
from estimator.spec import ModelSpec


def refuse_failing(case: Case, spec: ModelSpec) -> None:
    """Refuse a case whose run would fail.

    Raises:
        UnsupportedError: its model's code fails.
        CaseError: a value that another would mend.
    """
    if case.lora is not None:
        _refuse_numbered_targets(case, spec)
    if case.training or case.cache == "paged":
        return
    _refuse_without_attention(spec)
    _refuse_short_cache(spec)
    if case.cache == "quantized":
        _refuse_uneven_groups(case, spec)


def _refuse_without_attention(spec: ModelSpec) -> None:
    """The positions and masks of a hybrid go by the length of the cache, which asks its first
    attention layer.

    Source: transformers/cache_utils.py, `Cache.get_seq_length` and `get_mask_sizes`.
    """
    attends = any(
        layer.attends and layer.attention.mixer is None for layer in distinct_layers(spec)
    )
    if spec.position_ids and not attends:
        raise UnsupportedError(
            f"{spec.name} has no attention layer, which transformers' cache asks for its length: "
            "generate fails; give it an attention layer, or use task training"
        )


def _refuse_short_cache(spec: ModelSpec) -> None:
    """Source: transformers/cache_utils.py, `DynamicCache`: a layer for each `num_hidden_layers`."""
    made = spec.cache_layers
    if made is not None and made < len(spec.layers):
        raise UnsupportedError(
            f"{spec.name} has {len(spec.layers)} decoder_layers, but transformers makes a cache of "
            f"{made} layers (encoder_layers): generate fails; use task training"
        )


def _refuse_uneven_groups(case: Case, spec: ModelSpec) -> None:
    """Source: optimum-quanto's tensor/grouped.py, `group`: groups along each sequence's tokens."""
    for layer in distinct_layers(spec):
        if layer.attention.mixer is not None:
            continue
        for features in layer.attention.cached_features:
            if case.sequence_length * features % GROUP:
                raise UnsupportedError(
                    f"sequence_length is {case.sequence_length}, but a quantized cache has groups "
                    f"of {GROUP}, into which {features} features a token of {spec.name} then do "
                    "not go: use a multiple of 64, or cache dynamic"
                )


def _refuse_numbered_targets(case: Case, spec: ModelSpec) -> None:
    """peft finds targets by the ends of module names: a layer's own name is its number."""
    assert case.lora is not None
    targets = case.lora.target_modules
    if isinstance(targets, str):
        return
    numbers = [name for name in targets if name.isdigit() and int(name) < len(spec.layers)]
    if numbers:
        raise CaseError(
            f"target_modules name {', '.join(numbers)}, which is a layer of {spec.name}, too, and "
            "peft adapts linears only: name others, or all-linear",
            field="lora.target_modules",
        )
