"""Formulas of self-attention by `Attention.recipe`."""

from __future__ import annotations

from collections.abc import Callable

from estimator.architecture import (
    alibi,
    delta_net,
    fp32_scores,
    gated_attention,
    gemma4,
    head_scan,
    latent,
    linear_recurrence,
    llama4,
    selective_scan,
    short_conv,
    sparse_latent,
    split,
    state_space,
    xglm,
)
from estimator.architecture import attention as standard
from estimator.architecture.context import Context
from estimator.architecture.stretches import distinct_layers
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention, ModelSpec

_RECIPES: dict[str, Callable[[Tape, Tensor, Attention, Context], tuple[Tensor, Tensor | None]]] = {
    "standard": standard.attention,
    "split": split.attention,
    "xglm": xglm.attention,
    "mpt": alibi.mpt_attention,
    "gptj": fp32_scores.gptj_attention,
    "codegen": fp32_scores.codegen_attention,
    "gpt_neo": fp32_scores.gpt_neo_attention,
    "delta_net": delta_net.attention,
    "gated": gated_attention.attention,
    "selective_scan": selective_scan.attention,
    "head_scan": head_scan.attention,
    "linear_recurrence": linear_recurrence.attention,
    "state_space": state_space.attention,
    "short_conv": short_conv.attention,
    "latent": latent.attention,
    "sparse_latent": sparse_latent.attention,
    "llama4": llama4.attention,
    "gemma4": gemma4.attention,
}

_FUNCTIONS = ("standard", "split", "gated", "latent", "sparse_latent", "llama4", "gemma4")
_NO_CORES = (
    "delta_net",
    "selective_scan",
    "head_scan",
    "linear_recurrence",
    "state_space",
    "short_conv",
)
_OWN_CORES_OF_LAYERS = ("falcon", "bloom")


def recomputable(spec: ModelSpec) -> bool:
    """Whether the layers' core attention is a function that transformers lets others choose.

    Else it is code of the layers' own, which nothing can be wrapped around. What has no core
    attention (delta nets, convolutions) is left as it is, where other layers have one.
    """
    if any(layer.attention.eager == "plain_named" for layer in distinct_layers(spec)):
        return False
    kinds = {layer.attention.recipe for layer in distinct_layers(spec)}
    own = {layer.recipe for layer in distinct_layers(spec)} & set(_OWN_CORES_OF_LAYERS)
    return not own and kinds <= {*_FUNCTIONS, *_NO_CORES} and not kinds.isdisjoint(_FUNCTIONS)


def self_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    return _RECIPES[spec.recipe](tape, x, spec, ctx)
