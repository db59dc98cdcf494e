"""How a training case's loss is computed: as transformers does, by Liger, or by TRL's fused head.

On a GPU the libraries' own code is put into the model; on meta tensors, where their Triton kernels
cannot run, a mirror of it (`profiler.trace.liger_loss`, `profiler.trace.chunked_loss`).
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import Any

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import EnvironmentUnavailable, UnsupportedError
from estimator.families import parse_spec
from estimator.losses import check_liger_type, check_loss
from estimator.spec import ModelSpec

LIGER_CONFIG = {
    "fused_linear_cross_entropy": True,
    "cross_entropy": False,
    "rope": False,
    "rms_norm": False,
    "layer_norm": False,
    "swiglu": False,
    "geglu": False,
    "relu_squared": False,
}
"""`TrainingArguments.liger_kernel_config`: the loss alone. Liger leaves out names that a type's
function does not have."""

CHUNKED_OUTPUTS = ("log_probs", "entropy", "is_top1")
"""What SFTTrainer asks of TRL's fused head for its metrics."""


def prepare(case: Case, model: Any) -> None:
    """Give a model the forward pass of the case's loss, in place.

    Raises:
        UnsupportedError: Liger does not know the type, or TRL finds no backbone in its class.
        EnvironmentUnavailable: the library is not installed, or too old.
    """
    if case.loss == "standard":
        return
    spec = _known_spec(case)
    if spec is not None:
        check_loss(case.loss, spec)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if case.loss == "liger":
        _prepare_liger(case, base)
    else:
        _prepare_chunked(base)


def _known_spec(case: Case) -> ModelSpec | None:
    with contextlib.suppress(UnsupportedError):
        return parse_spec(load_config(case.model))
    return None


def _prepare_liger(case: Case, base: Any) -> None:
    check_liger_type(base.config.model_type)
    if base.device.type == "meta":
        from profiler.trace import liger_loss

        liger_loss.patch(base, case.gpu)
        return
    if find_spec("liger_kernel") is None:
        raise EnvironmentUnavailable(
            "loss liger needs liger-kernel, not installed here: pip install liger-kernel"
        )
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(base, LIGER_CONFIG)


def _prepare_chunked(base: Any) -> None:
    if base.device.type == "meta":
        from profiler.trace import chunked_loss

        chunked_loss.patch(base)
        return
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError as error:
        raise EnvironmentUnavailable(
            "loss chunked needs TRL's fused head, not installed here: pip install 'trl>=1.16'"
        ) from error
    add_fused_lm_head(base, outputs=CHUNKED_OUTPUTS)


def inputs_of(case: Case, batch: dict[str, Any], items: Any) -> dict[str, Any]:
    """Return what the loop calls the model with.

    Args:
        items: the number of tokens with a label in the whole step, or None where the model does
            not take it.

    Source: Trainer.compute_loss; SFTTrainer.compute_loss (trl 1.16.0).
    """
    if case.loss == "chunked":
        return {**batch, "use_cache": False, "fused_lm_head": True}
    if case.parallelism is not None:
        return {**batch, "labels": batch["shift_labels"]}
    return batch if items is None else {**batch, "num_items_in_batch": items}


def loss_of(case: Case, outputs: Any, batch: dict[str, Any], items: Any) -> Any:
    """Return the loss that the loop differentiates; of TRL's, it also reads its metrics."""
    if case.parallelism is not None:
        from profiler.ulysses import whole_loss

        return whole_loss(outputs["loss"], batch["shift_labels"], case.sp_size)
    if case.loss != "chunked":
        return outputs["loss"]
    import torch

    per_token_loss = -outputs.log_probs
    count = outputs.label_mask.sum() if items is None else items
    loss = per_token_loss.sum() / torch.as_tensor(count).clamp(min=1)
    valid = outputs.label_mask.sum()
    for metric in (outputs.entropy.detach().sum() / valid, outputs.is_top1.sum() / valid):
        metric.item()
    batch["attention_mask"].sum().item()
    return loss
