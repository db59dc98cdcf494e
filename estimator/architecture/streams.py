"""Formulas of the ends of Gemma 3n: streams made of the embeddings, and joined to one again.

Source: transformers/models/gemma3n/modeling_gemma3n.py, `Gemma3nTextModel.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import linear
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import Linear, StreamEnds


def first_stream(tape: Tape, x: Tensor, streams: int) -> Tensor:
    """One of the streams: backward copies its gradient into zeros of all."""
    return tape.view(x, x.count // streams, x.size)


def into_streams(
    tape: Tape, x: Tensor, spec: StreamEnds, ctx: Context
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return all streams, [N, B, Q, hidden], and what the model's forward still names; `x`, the
    embeddings, is borrowed."""
    magnitude = _magnitude(tape, x, ctx.tokens)
    target = _root(tape, magnitude)
    made = [tape.alias(x)]
    named: tuple[Tensor, ...] = ()
    for projection in spec.into:
        raw = linear(tape, x, projection, ctx)
        stream, size = _as_large(tape, raw, target, ctx.tokens)
        tape.drop(*named)
        named = (raw, size)
        made.append(stream)
    grads = (PASS,) * len(made)
    out = tape.op(x.count * len(made), x.width, tuple(made), grads=grads)
    return out, (*made, *named, target)


def out_of_streams(tape: Tape, x: Tensor, spec: StreamEnds, ctx: Context) -> Tensor:
    """Return the mean of the streams, each as large as the first; `x` is borrowed."""
    first = first_stream(tape, x, spec.streams)
    target = _root(tape, _magnitude(tape, first, ctx.tokens))
    tape.drop(first)
    made = [first_stream(tape, x, spec.streams)]
    named: tuple[Tensor, ...] = ()
    for projection in spec.out_of:
        made.append(_undone(tape, x, projection, target, spec, ctx, named))
    grads = (PASS,) * len(made)
    stacked = tape.op(x.count, x.width, tuple(made), grads=grads)
    out = tape.op(x.count // spec.streams, x.width, (stacked,), grads=(NEW,))
    tape.drop(stacked, target, *made)
    return out


def _undone(
    tape: Tape,
    x: Tensor,
    projection: Linear,
    target: Tensor,
    spec: StreamEnds,
    ctx: Context,
    named: tuple[Tensor, ...],
) -> Tensor:
    part = first_stream(tape, x, spec.streams)
    raw = linear(tape, part, projection, ctx)
    tape.drop(part, *named)
    stream, size = _as_large(tape, raw, target, ctx.tokens)
    tape.drop(raw, size)
    return stream


def _magnitude(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """The mean square of each row."""
    squares = tape.op(x.count, x.width, (x,), (x,), temporaries=(x.size, x.size))
    mean = tape.op(rows, x.width, (squares,))
    tape.drop(squares)
    return mean


def _root(tape: Tape, x: Tensor) -> Tensor:
    out = tape.op(x.count, x.width, (x,), (x,), temporaries=(x.size, x.size))
    tape.drop(x)
    return out


def _as_large(tape: Tape, x: Tensor, target: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`x * target / size`, and the size; `x` and the target size are borrowed."""
    mean = _magnitude(tape, x, rows)
    least = tape.op(rows, x.width, (mean,), (mean,))
    tape.drop(mean)
    size = tape.op(rows, x.width, (least,), saves_out=True)
    tape.drop(least)
    raised = tape.op(x.count, x.width, (target, x), (x, target), temporaries=(x.size,))
    out = tape.op(x.count, x.width, (size, raised), (raised, size), temporaries=(x.size,) * 3)
    tape.drop(raised)
    return out, size
