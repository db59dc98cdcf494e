"""Makes a model of today's transformers behave as an older stack did (see estimator/stacks.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

from estimator.errors import UnsupportedError
from estimator.stacks import Stack


def apply(stack: Stack, model: Any) -> None:
    """Change a model in place. Checkpointing's variant is chosen where it is enabled.

    Raises:
        UnsupportedError: the stack's generate was another loop, with another cache, or its
            kernels were others.
    """
    if stack.tuple_cache:
        raise UnsupportedError(
            f"stack {stack.name!r} kept its cache in tuples, which today's transformers cannot: "
            "use gpumem estimate"
        )
    if stack.fused_kernels:
        raise UnsupportedError(
            f"stack {stack.name!r} brought kernels of its own, which are not here: "
            "use gpumem estimate"
        )
    if stack.shifted_logits:
        upcast = model.config.model_type not in stack.uncast_loss_types
        model.loss_function = partial(shifted_loss, upcast=upcast)
    suffix = dict(stack.cached_projections).get(model.config.model_type)
    if suffix is not None:
        _keep_projections(model, suffix)
    if stack.fp32_norms_on_quantized and getattr(model, "is_quantized", False):
        import torch

        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data = parameter.data.to(torch.float32)


def _keep_projections(model: Any, suffix: str) -> None:
    """Keep what the modules of a name return until the model's forward has returned.

    Source: transformers 4.48.1, models/gpt_bigcode/modeling_gpt_bigcode.py (`presents`).
    """
    import torch

    kept: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        # Checkpointing's second pass returns no cache to anybody.
        if torch._C._current_graph_task_id() == -1:
            kept.append(output)

    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == suffix:
            module.register_forward_hook(keep)
    model.register_forward_hook(lambda *_: kept.clear())


def shifted_loss(
    logits: Any,
    labels: Any,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    upcast: bool = True,
    **_: Any,
) -> Any:
    """Cross-entropy over a copy of the logits without their last position, in fp32 if `upcast`.

    Args:
        logits: [batch, tokens, vocabulary]; labels: [batch, tokens].

    Source: transformers 4.48.1, loss/loss_utils.py, `ForCausalLMLoss`.
    """
    import torch

    if upcast:
        logits = logits.float()
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    shift_logits = shift_logits.view(-1, vocab_size)
    shift_labels = shift_labels.view(-1)
    reduction = "sum" if num_items_in_batch is not None else "mean"
    loss = torch.nn.functional.cross_entropy(
        shift_logits, shift_labels, ignore_index=ignore_index, reduction=reduction
    )
    return loss / num_items_in_batch if num_items_in_batch is not None else loss
