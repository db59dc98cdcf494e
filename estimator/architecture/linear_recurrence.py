"""Formulas of Griffin's block: a convolution, gates and a linear recurrence (RG-LRU), token by
token, as transformers' own code runs it.

Symbols: B batch, Q tokens, W features of the recurrence.

Source: https://arxiv.org/abs/2402.19427, section 2.4; transformers/models/recurrent_gemma/
modeling_recurrent_gemma.py, `RecurrentGemmaRecurrentBlock.forward`, `RecurrentGemmaRglru`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import (
    activation,
    add,
    cast,
    linear,
    multiply,
    operands,
    parameter,
    scale,
)
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import Attention, LinearRecurrence


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    mixer = spec.mixer
    assert isinstance(mixer, LinearRecurrence)
    into_gate, into = mixer.inputs
    opened = linear(tape, x, into_gate, ctx)
    gate = activation(tape, opened, mixer.activation, ctx)
    tape.drop(opened)
    given = linear(tape, x, into, ctx)
    mixed = _convolved(tape, given, mixer, ctx)
    states = _recurrence(tape, mixed, mixer, ctx)
    tape.drop(mixed)
    out = multiply(tape, states, gate)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, states, gate)
    return result, None


def _convolved(tape: Tape, x: Tensor, mixer: LinearRecurrence, ctx: Context) -> Tensor:
    """Convolve `x`, which is consumed; the last columns are kept where there is a cache."""
    W, kernel = mixer.width, mixer.kernel
    if ctx.decoding:
        joined = tape.new(ctx.batch * W * kernel, x.width)
        product = tape.new(joined.count, x.width)
        total = tape.new(x.count, x.width)
        tape.drop(product)
        out = tape.new(x.count, x.width)
        tape.drop(total, joined, x)
        return out
    if ctx.cached:
        tape.new(ctx.batch * W * (kernel - 1), x.width, component="kv_cache")
    weight = parameter(W * kernel, ctx.width, ctx.full)
    bias = parameter(W, ctx.width, ctx.full)
    count = ctx.batch * W * (ctx.queries + kernel - 1)
    # A convolution saves its input even where its weight does not train.
    out = tape.op(count, x.width, (bias, weight, x), (x, weight))
    cut = tape.view(out, x.count, out.size)
    tape.drop(out, x)
    return cut


def _recurrence(tape: Tape, x: Tensor, mixer: LinearRecurrence, ctx: Context) -> Tensor:
    """The gates, the decays, and the scan of what the gates let in: [B, Q, W]."""
    # One sequence lies so already.
    several = ctx.batch > 1
    by_head = tape.op(x.count, x.width, (x,), grads=(PASS,)) if several else tape.alias(x)
    made = _gate(tape, by_head, mixer, ctx)
    input_gate = _opened(tape, made)
    again = _gate(tape, by_head, mixer, ctx)
    tape.drop(made)
    forget = _opened(tape, again)
    logs = _log_decays(tape, forget, mixer, ctx)
    decays = tape.op(x.count, logs.width, (logs,), saves_out=True)
    tape.drop(forget)
    doubled = scale(tape, logs)
    squares = tape.op(x.count, doubled.width, (doubled,), saves_out=True)
    tape.drop(doubled)
    let_in = multiply(tape, x, input_gate)
    factor = _normalizer(tape, squares)
    narrow = cast(tape, factor, x.width)
    normalized = multiply(tape, let_in, narrow)
    tape.drop(narrow)
    out = (_step if ctx.decoding else _scanned)(tape, normalized, decays, mixer, ctx)
    tape.drop(by_head, again, input_gate, logs, decays, squares, let_in, factor, normalized)
    return out


def _gate(tape: Tape, x: Tensor, mixer: LinearRecurrence, ctx: Context) -> Tensor:
    """`baddbmm(bias, x, weight)`, head by head."""
    bias = parameter(mixer.width, ctx.width, ctx.full)
    weight = parameter(mixer.gate_count, ctx.width, ctx.full)
    return tape.op(x.count, x.width, (bias, weight, x), operands(x, weight))


def _opened(tape: Tape, x: Tensor) -> Tensor:
    """The sigmoid of what is laid out by token again."""
    by_token = tape.op(x.count, x.width, (x,), grads=(PASS,))
    out = tape.op(x.count, x.width, (by_token,), saves_out=True)
    tape.drop(by_token)
    return out


def _log_decays(tape: Tape, gate: Tensor, mixer: LinearRecurrence, ctx: Context) -> Tensor:
    """`-8 * gate * softplus(parameter)`, one a feature."""
    scaled = scale(tape, gate)
    rates = parameter(mixer.width, ctx.width, ctx.full)
    soft = tape.op(mixer.width, ctx.width, (rates,), (rates,))
    temporaries = (scaled.size,) if soft.grad else ()
    out = tape.op(
        gate.count, gate.width, (scaled, soft), operands(scaled, soft), temporaries=temporaries
    )
    tape.drop(scaled, soft)
    return out


def _normalizer(tape: Tape, squares: Tensor) -> Tensor:
    """`reset + ~reset * sqrt(1 - square)`, whose own backward clips the gradient."""
    rest = tape.op(squares.count, squares.width, (squares,))
    root = tape.op(rest.count, rest.width, (rest,), (rest,), temporaries=(rest.size,) * 2)
    tape.drop(rest)
    kept = scale(tape, root)
    out = tape.op(kept.count, kept.width, (kept,), grads=(PASS,))
    tape.drop(kept, root)
    return out


def _scanned(
    tape: Tape, x: Tensor, decays: Tensor, mixer: LinearRecurrence, ctx: Context
) -> Tensor:
    """Token by token in fp32: `state = decay * state + x`, written into the output in place."""
    size = ctx.batch * mixer.width
    kept = scale(tape, decays)
    first = tape.new(size, 4)
    state = tape.alias(first)
    out = tape.new(x.count, x.width)
    for _ in tape.rounds(ctx.queries):
        column = tape.view(kept, size, kept.size)
        decay = cast(tape, column, 4)
        product = tape.op(size, 4, (decay, state), operands(decay, state))
        tape.drop(decay, column, state)
        column = tape.view(x, size, x.size)
        wide = cast(tape, column, 4)
        state = add(tape, product, wide)
        tape.drop(wide, column, product)
        narrow = cast(tape, state, x.width)
        # An operation in place on a slice: backward copies the whole gradient.
        before, out = (
            out,
            tape.op(x.count, x.width, (out, narrow), grads=(NEW, narrow.size), into=out),
        )
        tape.drop(narrow, before)
    tape.drop(kept, first)
    if ctx.cached:
        # The module keeps the last state.
        tape.new(size, 4, component="kv_cache")
    if tape.stop_after is not None:
        # The module names the last state until the next forward pass, and with it the graph of
        # checkpointing's second pass, which no backward runs through and frees.
        tape.linger(state)
    tape.drop(state)
    return out


def _step(tape: Tape, x: Tensor, decays: Tensor, mixer: LinearRecurrence, ctx: Context) -> Tensor:
    """One token's: the state is made anew, in fp32."""
    kept, wide = tape.new(x.count, x.width), tape.new(x.count, 4)
    state = tape.new(x.count, 4)
    tape.drop(wide)
    out = tape.new(x.count, x.width)
    tape.drop(kept, state)
    return out
