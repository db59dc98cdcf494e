"""TRL's fused head on meta tensors: its Python code without its Triton kernels, which write in
place and allocate nothing.

Statement by statement that of trl 1.16.0 on a card with Triton: what is named there is named here,
because names decide what is alive. Source: trainer/utils.py (`add_fused_lm_head`),
kernels/chunked_logprob.py (`ChunkedLogProbFunction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from profiler.trace.autocast import autocast_dtype

TOKEN_CHUNK_SIZE = 4096
VOCABULARY_CHUNK_SIZE = 32768


@dataclass
class FusedOutputs:
    """What the fused head returns: [batch, tokens - 1] each, and the loss, which no loop uses."""

    loss: Any
    log_probs: Any
    entropy: Any
    is_top1: Any
    label_mask: Any


def patch(model: Any) -> None:
    """Give a meta model TRL's fused head; `model` is not wrapped."""
    model.forward = MethodType(_forward, model)


def _forward(self: Any, *args: Any, fused_lm_head: bool, labels: Any, **kwargs: Any) -> Any:
    kwargs["use_cache"] = False
    backbone_outputs = self.base_model(*args, **kwargs)
    hidden_states = backbone_outputs.last_hidden_state[:, :-1]
    labels = labels[:, 1:]
    lm_head = self.get_output_embeddings()
    mask = labels != -100
    weight, bias = lm_head.weight, lm_head.bias
    per_token = ChunkedLogProb.apply(
        _selected(hidden_states, mask), weight, bias, _selected(labels, mask)
    )
    per_token = (_scattered(x, mask) for x in per_token)
    log_probs, entropy, is_top1 = per_token
    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return FusedOutputs(loss, log_probs, entropy, is_top1, mask)


def _selected(x: Any, mask: Any) -> Any:
    """`x[mask]`; on CUDA the positions of the mask's true elements are there meanwhile.

    Source: aten/src/ATen/native/IndexingUtils.h, `expandTensors`.
    """
    positions = mask.nonzero()
    selected = x[mask]
    del positions
    return selected


def _scattered(x: Any, mask: Any) -> Any:
    """Zeros with `x` where the mask is true; on CUDA with a running sum of the mask meanwhile.

    Source: aten/src/ATen/native/cuda/IndexKernel.cpp, `masked_scatter__cuda`.
    """
    zeros = x.new_zeros(mask.shape)
    sums = torch.empty_like(mask, dtype=torch.int64)
    scattered = zeros.masked_scatter(mask, x)
    del sums
    return scattered


class ChunkedLogProb(torch.autograd.Function):  # type: ignore[misc]
    """Log-probability, entropy and rank of each target, the logits made tile by tile, twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
        """Return three tensors [N], of hidden states [N, hidden]; weight [vocabulary, hidden]."""
        ctx.set_materialize_grads(False)
        N, vocab = hidden.shape[0], weight.shape[0]
        compute_dtype = autocast_dtype() or hidden.dtype
        statistics = [hidden.new_empty((N,), dtype=torch.float32) for _ in range(7)]
        running_max, sum_exp, x_sum_exp, _, _, max_before_target, target_logit = statistics
        mm_buf = _tile_buffer(hidden, compute_dtype)
        for token_start in range(0, N, TOKEN_CHUNK_SIZE):
            token_end = min(token_start + TOKEN_CHUNK_SIZE, N)
            n = token_end - token_start
            hidden_chunk = hidden[token_start:token_end].to(compute_dtype)
            for start in range(0, vocab, VOCABULARY_CHUNK_SIZE):
                end = min(start + VOCABULARY_CHUNK_SIZE, vocab)
                tile = mm_buf[:n, : end - start]
                torch.mm(hidden_chunk, weight[start:end].to(compute_dtype).t(), out=tile)
                if bias is not None:
                    tile.add_(bias[start:end].to(compute_dtype))
        log_z = running_max + torch.log(sum_exp)
        logprobs = target_logit - log_z
        entropy = log_z - x_sum_exp / sum_exp
        is_top1 = (target_logit >= running_max) & (target_logit > max_before_target)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropy)
        ctx.compute_dtype = compute_dtype
        ctx.mark_non_differentiable(is_top1)
        return logprobs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Any, grad_entropy: Any, _: Any) -> Any:
        """Return the gradients, each tile of logits made again and overwritten by its own."""
        hidden, weight, bias, _targets, _log_z, _entropy = ctx.saved_tensors
        compute_dtype = ctx.compute_dtype
        needs_hidden_grad, needs_weight_grad, needs_bias_grad = ctx.needs_input_grad[:3]
        N, vocab = hidden.shape[0], weight.shape[0]
        grad_hidden = _fp32_zeros(hidden) if needs_hidden_grad else None
        grad_weight = _fp32_zeros(weight) if needs_weight_grad else None
        grad_bias = _fp32_zeros(bias) if needs_bias_grad else None
        mm_buf = _tile_buffer(hidden, compute_dtype)
        grad_logprobs = grad_logprobs.float().contiguous()
        for token_start in range(0, N, TOKEN_CHUNK_SIZE):
            token_end = min(token_start + TOKEN_CHUNK_SIZE, N)
            n = token_end - token_start
            hidden_chunk = hidden[token_start:token_end].to(compute_dtype)
            for start in range(0, vocab, VOCABULARY_CHUNK_SIZE):
                end = min(start + VOCABULARY_CHUNK_SIZE, vocab)
                w_chunk = weight[start:end].to(compute_dtype)
                tile = mm_buf[:n, : end - start]
                torch.mm(hidden_chunk, w_chunk.t(), out=tile)
                if bias is not None:
                    tile.add_(bias[start:end].to(compute_dtype))
                if grad_hidden is not None:
                    _add_product(grad_hidden[token_start:token_end], tile, w_chunk)
                if grad_weight is not None:
                    _add_product(grad_weight[start:end], tile.t(), hidden_chunk)
                if grad_bias is not None:
                    grad_bias[start:end] += tile.sum(dim=0, dtype=torch.float32)
        return (
            grad_hidden.to(hidden.dtype) if grad_hidden is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
        )


def _tile_buffer(hidden: Any, dtype: Any) -> Any:
    rows = min(hidden.shape[0], TOKEN_CHUNK_SIZE)
    buffer = hidden.new_empty((rows, VOCABULARY_CHUNK_SIZE), dtype=dtype)
    recorder: Any = _get_current_dispatch_mode()
    if recorder is not None:
        recorder.register([buffer], "logits")
    return buffer


def _fp32_zeros(x: Any) -> Any:
    return torch.zeros(x.shape, device=x.device, dtype=torch.float32)


def _add_product(total: Any, a: Any, b: Any) -> None:
    """`total += a @ b` in fp32, from half precision without rounding the product."""
    if a.dtype in (torch.float16, torch.bfloat16):
        torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
