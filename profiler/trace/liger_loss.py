"""Liger's fused linear cross-entropy on meta tensors: its Python code without its Triton kernels,
which write in place and allocate nothing.

Statement by statement that of liger_kernel 0.8.5: what is named there is named here, because names
decide what is alive. Source: ops/fused_linear_cross_entropy.py
(`LigerFusedLinearCrossEntropyFunction`), transformers/model/loss_utils.py (`LigerForCausalLMLoss`),
transformers/model/llama.py (`lce_forward`, of which the other models' differ in nothing that
allocates, but for what `patch` names).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from estimator.gpus import find_gpu
from estimator.units import ceil_div
from profiler.trace.autocast import autocast_dtype

_CHUNK_BUDGETS = {"gpt_oss": 8}
"""`chunk_mem_const` of the types whose forward pass sets one (transformers/model/gpt_oss.py)."""

_OLD_CARDS = ("pascal", "volta", "turing")
"""Compute capability below 8: products are not added to the weight's gradient in place."""


def patch(model: Any, gpu: str | None) -> None:
    """Replace a meta model's forward pass by the one that Liger gives it.

    Args:
        model: a causal language model of transformers, not wrapped.
        gpu: the card of the case.
    """
    old_card = gpu is not None and find_gpu(gpu).architecture in _OLD_CARDS
    model.forward = MethodType(_forward, model)
    model.liger_settings = {
        "softcap": getattr(model.config, "final_logit_softcapping", None),
        "budget": _CHUNK_BUDGETS.get(model.config.model_type, 1),
        "old_card": old_card,
    }


def _forward(
    self: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    labels: Any = None,
    num_items_in_batch: Any = None,
    **kwargs: Any,
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    hidden_states = outputs[0]
    kept_hidden_states = hidden_states[:, slice(0, None), :]
    if self.config.model_type == "falcon_h1":
        kept_hidden_states = kept_hidden_states * self.model.lm_head_multiplier
    loss = _loss(self, kept_hidden_states, labels, num_items_in_batch)
    return CausalLMOutputWithPast(loss=loss, logits=None)


def _loss(model: Any, hidden_states: Any, labels: Any, num_items_in_batch: Any) -> Any:
    labels = torch.nn.functional.pad(labels, (0, 1), value=-100)
    shift_labels = labels[..., 1:].contiguous()
    hidden_states = hidden_states.view(-1, hidden_states.shape[-1])
    shift_labels = shift_labels.view(-1)
    loss = FusedLinearCrossEntropy.apply(
        hidden_states, model.lm_head.weight, shift_labels, model.liger_settings
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


class FusedLinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """The loss of tokens [T, hidden] and a head [vocabulary, hidden], gradients made in forward."""

    @staticmethod
    def forward(ctx: Any, _input: Any, weight: Any, target: Any, settings: dict[str, Any]) -> Any:
        """Return the loss, fp32, summed or averaged over tokens."""
        loss, grad_input, grad_weight = _fused_forward(_input, weight, target, settings)
        ctx.save_for_backward(
            grad_input.detach(), grad_weight.detach() if grad_weight is not None else None
        )
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> Any:
        """Return the gradients that forward made, scaled in place by a kernel."""
        grad_input, grad_weight = ctx.saved_tensors
        _compare_with_one(grad_output)
        return grad_input, grad_weight, None, None


def _fused_forward(
    _input: Any, weight: Any, target: Any, settings: dict[str, Any]
) -> tuple[Any, Any, Any]:
    BT, H = _input.shape
    V = weight.shape[0]
    inc_factor = ceil_div(V, settings["budget"] * H)
    chunk_size = min(_next_power_of_2(ceil_div(BT, inc_factor)), BT)
    num_chunks = ceil_div(BT, chunk_size)
    grad_input = torch.zeros_like(_input)
    grad_weight = None
    if _input.requires_grad and weight.requires_grad:
        grad_weight = torch.zeros_like(weight)
    loss_1d = torch.zeros(BT, dtype=torch.float32, device=_input.device)
    target_mask = target != -100
    target_mask.sum().item()
    use_mm_out = _can_use_mm_out(_input, weight)
    logits_storage = _input.new_empty((chunk_size, V)) if use_mm_out else None
    for chunk_id in range(num_chunks):
        start_idx = chunk_id * chunk_size
        end_idx = min((chunk_id + 1) * chunk_size, BT)
        _input_chunk = _input[start_idx:end_idx]
        if logits_storage is not None:
            logits_chunk = logits_storage[: end_idx - start_idx]
            torch.mm(_input_chunk, weight.t(), out=logits_chunk)
        else:
            logits_chunk = _input_chunk @ weight.t()
        # liger_cross_entropy_kernel writes the losses, and gradients over the logits.
        grad_logits_chunk = logits_chunk
        del logits_chunk
        if _input.requires_grad:
            if use_mm_out:
                torch.mm(grad_logits_chunk, weight, out=grad_input[start_idx:end_idx])
            else:
                grad_input[start_idx:end_idx] = grad_logits_chunk @ weight
        if grad_weight is not None:
            _add_weight_gradient(grad_weight, grad_logits_chunk, _input_chunk, settings)
        del grad_logits_chunk, _input_chunk
    del logits_storage
    return torch.sum(loss_1d), grad_input, grad_weight


def _can_use_mm_out(_input: Any, weight: Any) -> bool:
    if _input.dtype != weight.dtype:
        return False
    cast_to = autocast_dtype()
    return cast_to is None or bool(_input.dtype == cast_to)


def _add_weight_gradient(
    grad_weight: Any, grad_logits_chunk: Any, _input_chunk: Any, settings: dict[str, Any]
) -> None:
    """`grad_weight += grad_logits.T @ input`, in place where the card and the dtypes allow it."""
    half = grad_logits_chunk.dtype in (torch.float16, torch.bfloat16)
    matching = grad_weight.dtype in (torch.float32, grad_logits_chunk.dtype)
    if half and matching and not settings["old_card"]:
        # addmm with out= takes no part in autocast, so the input is cast by hand.
        input_chunk = _input_chunk
        if input_chunk.dtype != grad_logits_chunk.dtype:
            input_chunk = input_chunk.to(grad_logits_chunk.dtype)
        torch.ops.aten.addmm.dtype_out(
            grad_weight, grad_logits_chunk.t(), input_chunk, grad_weight.dtype, out=grad_weight
        )
    else:
        grad_weight += torch.mm(grad_logits_chunk.t(), _input_chunk).float()


def _compare_with_one(grad_output: Any) -> None:
    """`torch.equal(grad_output, torch.tensor(1.0))`, which on CUDA is `eq`, `all` and `item`."""
    one = torch.ones((), device=grad_output.device)
    torch.eq(grad_output, one).all().item()


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
