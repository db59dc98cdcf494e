"""DeepSpeed-Ulysses sequence parallelism as one of its GPUs sees it.

Each rank holds its part of every sequence; around the core attention an all-to-all exchanges parts
of the sequence for parts of the heads. Without other ranks at hand the exchanges are allocations of
what they would receive, which is all that memory sees; everything else is what DeepSpeed's code
does, so that the copies around the exchanges are the same.

Source: deepspeed/runtime/sequence_parallel/ulysses_sp.py (`UlyssesSPAttentionHF`) and
sequence/layer.py (`_dim_zero_all_to_all`) of DeepSpeed 0.19; transformers/integrations/deepspeed.py
(`deepspeed_sp_compute_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from estimator.case import Case
from estimator.errors import CaseError, UnsupportedError


class _Exchange(torch.autograd.Function):  # type: ignore[misc]
    """An all-to-all over the first dimension: it receives as much as it sends."""

    @staticmethod
    def forward(ctx: Any, sent: Any) -> Any:
        return torch.empty_like(sent)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.empty_like(grads[0].contiguous())


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """A differentiable all-gather of scalars: one of each rank."""

    @staticmethod
    def forward(ctx: Any, sent: Any, ranks: int) -> Any:
        return tuple(torch.empty_like(sent) for _ in range(ranks))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.empty_like(grads[0]), None


def check(case: Case, model: Any) -> None:
    """Refuse a model that DeepSpeed's code, or accelerate's check of it, would refuse.

    Raises:
        CaseError: the ranks do not divide the heads.
        UnsupportedError: the configuration or the layers are of a kind that Ulysses cannot shard.
    """
    config, ranks = model.config.get_text_config(), case.sp_size
    kinds = getattr(config, "layer_types", None) or ()
    if not hasattr(config, "num_key_value_heads") or any("linear_attention" in k for k in kinds):
        raise UnsupportedError(
            f"DeepSpeed's sequence parallelism cannot shard {case.model_name}: it needs attention "
            "in every layer and num_key_value_heads in the configuration; use parallelism null"
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % ranks or (groups % ranks and ranks % groups):
        raise CaseError(
            f"parallelism.sp_size is {ranks}, but {case.model_name} has {heads} attention heads "
            f"and {groups} key/value heads: DeepSpeed wants it to divide the first, and to divide "
            "the second or be a multiple of it",
            "parallelism.sp_size",
        )


def spread(attend: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """Return the attention function of one rank: exchange, attend to whole sequences, exchange."""
    ranks = case.sp_size

    def attention(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if "position_ids" not in options:
            raise UnsupportedError(
                f"the layers of {case.model_name} hand their attention no position_ids, without "
                "which DeepSpeed's sequence parallelism stops; use parallelism null"
            )
        query, key, value = (x.permute(2, 0, 1, 3) for x in (query, key, value))
        positions = [torch.empty_like(options["position_ids"]) for _ in range(ranks)]
        options["position_ids"] = torch.cat(positions, dim=1)
        gathered = (_gather(query, ranks), _gather(key, ranks), _gather(value, ranks))
        queries, keys, values = gathered
        del gathered
        queries = queries.permute(1, 2, 0, 3).contiguous()
        keys = keys.permute(1, 2, 0, 3).contiguous()
        values = values.permute(1, 2, 0, 3).contiguous()
        if ranks > key.shape[2]:
            module.num_key_value_groups = queries.size(-3) // keys.size(-3)
        # A mask of this rank's tokens says nothing of the whole sequence.
        context, weights = attend(module, queries, keys, values, None, *rest, **options)
        context = context.transpose(0, 1)
        context = context.reshape([*context.shape[:2], -1])
        return _scatter(context, ranks).transpose(0, 1), weights

    return attention


def _gather(part: Any, ranks: int) -> Any:
    """From [part of S, B, heads, d] to [S, B, part of the heads, d]; few heads are repeated."""
    length, batch, heads, size = part.shape
    if ranks // heads > 1:
        part = part.repeat_interleave(ranks // heads, dim=2)
    part = part.reshape([length, batch, ranks, -1, size])
    part = part.permute(2, 0, 1, 3, 4).contiguous()
    whole = _Exchange.apply(part)
    return whole.reshape([ranks * length, *whole.shape[2:]]).contiguous()


def _scatter(context: Any, ranks: int) -> Any:
    """From [S, B, part of the features] to [part of S, B, all features]."""
    length, batch, features = context.shape
    context = context.reshape([ranks, length // ranks, batch, features]).contiguous()
    part = _Exchange.apply(context)
    part = part.permute(1, 2, 0, 3)
    return part.reshape([*part.shape[:2], -1]).contiguous()


def whole_loss(loss: Any, labels: Any, ranks: int) -> Any:
    """The mean loss of all ranks, weighted by their tokens that have labels."""
    losses = _Gather.apply(loss, ranks)
    good = (labels != -100).view(-1).sum()
    counts = torch.stack([torch.empty_like(good) for _ in range(ranks)])
    stacked = torch.stack(losses)
    safe = torch.where(counts > 0, stacked, torch.zeros_like(stacked))
    return (safe * counts).sum() / counts.sum().clamp(min=1)
