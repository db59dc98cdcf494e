"""Which modules adapters sit on: names that the formulas do not know are refused.

peft matches `target_modules` against the names of all modules, and passes over names that match
none (peft/tuners/tuners_utils.py, BaseTuner.inject_adapter). A name that is passed over here but
not there would be an under-estimate in silence.
"""

from __future__ import annotations

from functools import lru_cache

from estimator.architecture.inventory import inventory
from estimator.architecture.stretches import distinct_layers
from estimator.case import Lora
from estimator.errors import CaseError, UnsupportedError, show_value
from estimator.spec import ModelSpec, Moe

LINEARS_OF_OTHERS = frozenset(
    [
        "c_attn",
        "c_fc",
        "c_proj",
        "dense",
        "dense_4h_to_h",
        "dense_h_to_4h",
        "down_proj",
        "fc1",
        "fc2",
        "fc_in",
        "fc_out",
        "gate_proj",
        "gate_up_proj",
        "k_proj",
        "key",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
        "out_proj",
        "q_a_proj",
        "q_b_proj",
        "q_proj",
        "qkv_proj",
        "query",
        "query_key_value",
        "up_proj",
        "v_proj",
        "value",
        "w1",
        "w2",
        "w3",
        "Wo",
        "Wqkv",
    ]
)
"""Names of linears of some family, which lists of targets for many models hold; a model whose
spec has none of that name has no such module."""


@lru_cache(maxsize=64)
def targets_passed_over(spec: ModelSpec, lora: Lora) -> tuple[str, ...]:
    """Return the target modules that the model does not have, and that peft passes over.

    Raises:
        CaseError: no target is a module of the model, or half of what experts fuse is one: peft
            refuses both.
        UnsupportedError: a target that may be a module without a formula (embeddings, the head,
            a part of a path).
    """
    targets = lora.target_modules
    if isinstance(targets, str):
        return ()
    known = _known(spec)
    for name in targets:
        if name not in known and name not in LINEARS_OF_OTHERS:
            raise UnsupportedError(
                f"the architecture formulas know no adapter on {show_value(name)} of {spec.name}: "
                f"name target_modules among {', '.join(sorted(known))}, or use gpumem trace"
            )
    mixtures = {layer.mlp for layer in distinct_layers(spec) if isinstance(layer.mlp, Moe)}
    for mixture in mixtures:
        _refuse_half(spec, mixture, targets)
    if not inventory(spec, lora).adapters:
        raise CaseError(
            f"lora.target_modules is {show_value(list(targets))}, but {spec.name} has no such "
            f"linears: name some of {', '.join(sorted(known))}",
            "lora.target_modules",
        )
    return tuple(name for name in targets if name not in known)


def _known(spec: ModelSpec) -> set[str]:
    layers = distinct_layers(spec)
    names = {linear.name for layer in layers for linear in layer.linears}
    names |= {linear.name for linear in spec.outer_linears}
    for layer in layers:
        if isinstance(layer.mlp, Moe):
            names |= set(layer.mlp.adapter_names)
    return names


def _refuse_half(spec: ModelSpec, mixture: Moe, targets: tuple[str, ...]) -> None:
    """Gates and ups are one parameter: peft converts targets that name both, or neither."""
    if not mixture.adapter_names:
        return
    _, gate, up, _ = mixture.adapter_names
    if (gate in targets) != (up in targets):
        raise CaseError(
            f"lora.target_modules is {show_value(list(targets))}, but the experts of {spec.name} "
            f"fuse {gate} and {up}: name both or neither, as peft asks",
            "lora.target_modules",
        )
