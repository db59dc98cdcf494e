"""Formulas of a static cache: tensors with room for all tokens, made by the first pass.

A paged cache is counted alike, in whole pages; its kernels read the pages where they are.

Source: transformers/cache_utils.py (`StaticLayer`, `StaticSlidingWindowLayer`).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.tape import Tape, Tensor
from estimator.errors import UnsupportedError
from estimator.spec import Attention


def fill_slots(
    tape: Tape, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Write keys and values [B, kv_heads, Q, d] into the cache; return what attention reads."""
    if key.width != value.width:
        raise UnsupportedError(
            "under autocast keys and values differ in type here, which transformers' static cache "
            "cannot hold: use cache dynamic, or weights in half precision"
        )
    counts = [ctx.batch * features * ctx.slots for features in spec.cached_features[:2]]
    width = key.width
    if not ctx.held_keys:
        # Keys, values, and how many tokens there are.
        made = [tape.new(count, width, component="kv_cache") for count in counts]
        tape.new(1, 8, component="kv_cache")
        if not ctx.stores_all:
            return tape.alias(key), tape.alias(value)
    else:
        made = [Tensor(count, width, False, None) for count in counts]
        if ctx.cache == "static" and spec.window is not None and ctx.held_keys >= ctx.slots:
            _roll(tape, counts, width)
            return made[0], made[1]
    indices = tape.new(ctx.queries, 8)
    positions = tape.new(ctx.queries, 8)
    tape.drop(indices, positions)
    return made[0], made[1]


def _roll(tape: Tape, counts: list[int], width: int) -> None:
    """A full window moves on by a token: new tensors, copied back into the old ones."""
    rolled = [tape.new(count, width) for count in counts]
    index = tape.new(1, 8)
    tape.drop(*rolled, index)
