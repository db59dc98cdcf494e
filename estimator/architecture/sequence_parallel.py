"""Formulas of DeepSpeed-Ulysses: S/N tokens outside of attention, all S of a/N heads inside it.

Around the core attention an all-to-all exchanges parts of the sequence for parts of the heads; each
needs its input laid out rank by rank, and what it receives is laid out head by head again.

Symbols: N ranks, B batch, S tokens of a whole sequence, a query heads, k key/value heads, d head
size. Source: deepspeed/runtime/sequence_parallel/ulysses_sp.py (`UlyssesSPAttentionHF`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from estimator.architecture.context import Context
from estimator.architecture.stretches import distinct_layers
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.case import Case, Parallelism
from estimator.errors import CaseError, UnsupportedError
from estimator.spec import Attention, ModelSpec

Core = Callable[[Tape, Tensor, Tensor, Tensor, Attention, Context, bool], tuple[Tensor, object]]

_WITHOUT_GROUPS = ("persimmon",)
"""Types whose configurations have no `num_key_value_heads`, which DeepSpeed reads."""

_WITHOUT_POSITIONS = ("ministral3",)
"""Types whose layers hand their attention no positions, which DeepSpeed gathers."""

_STYLES = ("tables", "fp32_tables", "fp32_input", "held_parts")


def refuse_spread(case: Case, spec: ModelSpec) -> None:
    """Refuse what DeepSpeed's code cannot shard, and what these formulas do not follow.

    Raises:
        CaseError: the ranks do not divide the heads.
        UnsupportedError: a kind of attention without a formula; the message names the way out.
    """
    ranks = case.sp_size
    turned = any(layer.attention.rotary for layer in spec.layers)
    readable = turned and spec.model_type not in (*_WITHOUT_GROUPS, *_WITHOUT_POSITIONS)
    for layer in distinct_layers(spec):
        block = layer.attention
        plain = block.recipe == "standard" and layer.recipe == "pre_norm" and not block.sinks
        if not (readable and plain) or block.rotary_style not in _STYLES or spec.position_rows:
            raise UnsupportedError(
                f"the architecture formulas do not know sequence parallelism of {spec.model_type}: "
                "use parallelism null, or gpumem trace"
            )
        if block.heads % ranks or (block.kv_heads % ranks and ranks % block.kv_heads):
            raise CaseError(
                f"parallelism.sp_size is {ranks}, but {spec.name} has {block.heads} attention "
                f"heads and {block.kv_heads} key/value heads: DeepSpeed wants it to divide the "
                "first, and to divide the second or be a multiple of it",
                "parallelism.sp_size",
            )


def spreadable(spec: ModelSpec, ranks: int) -> bool:
    """Whether `ranks` GPUs, more than one, can share the sequences of a model."""
    case = Case(model=spec.name, parallelism=Parallelism(ranks))
    try:
        refuse_spread(case, spec)
    except (CaseError, UnsupportedError):
        return False
    return ranks > 1


def spread(
    tape: Tape, states: tuple[Tensor, Tensor, Tensor], spec: Attention, ctx: Context, core: Core
) -> Tensor:
    """Exchange queries, keys and values, attend to whole sequences, and exchange the output.

    `core` plays the attention of one rank's heads. Returns [B, S / N, a * d].
    """
    ranks = ctx.sp_size
    local = replace(
        spec,
        heads=spec.heads // ranks,
        kv_heads=max(spec.kv_heads // ranks, 1),
        # A mask of one rank's tokens is no mask of the whole sequence: it is dropped.
        window=None,
        masked=False,
    )
    whole = replace(ctx, queries=ranks * ctx.queries, keys=ranks * ctx.keys, sp_size=1)
    positions = [tape.new(ctx.tokens, 8) for _ in range(ranks)]
    positions.append(tape.new(whole.tokens, 8))
    query, key, value = states
    received = [
        _gathered(tape, query, 1, local.heads, ctx),
        _gathered(tape, key, max(ranks // spec.kv_heads, 1), local.kv_heads, ctx),
        _gathered(tape, value, max(ranks // spec.kv_heads, 1), local.kv_heads, ctx),
    ]
    exchanged = []
    for x, heads in zip(received, (local.heads, local.kv_heads, local.kv_heads), strict=True):
        exchanged.append(_by_head(tape, x, ctx.batch * heads))
    context, _ = core(tape, exchanged[0], exchanged[1], exchanged[2], local, whole, True)
    out = _scattered(tape, context, ctx)
    tape.drop(context, *exchanged, *positions)
    if ctx.batch > 1:
        # The layer wants [B, S / N, a * d] laid out so.
        parts, out = out, _copied(tape, out)
        tape.drop(parts)
    return out


def _copied(tape: Tape, x: Tensor) -> Tensor:
    return tape.op(x.count, x.width, (x,), grads=(PASS,))


def _by_head(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """From [S, B, heads, d] to [B, heads, S, d]; `x` is consumed."""
    if rows == 1:
        return x
    out = _copied(tape, x)
    tape.drop(x)
    return out


def _gathered(tape: Tape, x: Tensor, times: int, heads: int, ctx: Context) -> Tensor:
    """From [S / N, B, heads * N, d] to [S, B, heads, d]; too few heads are repeated first."""
    # The gradient comes back rank by rank, and is copied into rows of tokens.
    part = tape.view(x, x.count, x.size)
    if times > 1:
        few, part = part, tape.op(part.count * times, part.width, (part,), grads=(part.size,))
        tape.drop(few)
    sent = _copied(tape, part)
    tape.drop(part)
    # The gradient of what was laid out by head is copied before it is sent.
    copied = (sent.size,) if ctx.batch * heads > 1 else ()
    whole = tape.op(sent.count, sent.width, (sent,), grads=(NEW,), temporaries=copied)
    tape.drop(sent)
    return whole


def _scattered(tape: Tape, context: Tensor, ctx: Context) -> Tensor:
    """From [B, S, a * d / N] to [S / N, B, a * d]."""
    sent = _copied(tape, context) if ctx.batch > 1 else tape.alias(context)
    part = tape.op(sent.count, sent.width, (sent,), grads=(NEW,), temporaries=(sent.size,))
    out = _copied(tape, part)
    tape.drop(part, sent)
    return out
