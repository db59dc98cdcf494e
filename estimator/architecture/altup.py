"""Formulas of Gemma 3n's layer: streams predicted and corrected, sparse gates, inputs by token.

Symbols: N streams, T = B * Q tokens, H hidden size.
Source: transformers/models/gemma3n/modeling_gemma3n.py (`Gemma3nTextDecoderLayer.forward`,
`Gemma3nTextAltUp`, `Gemma3nTextMLP`, `Gemma3nTextModel.forward`).
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm, norm_in_place_of
from estimator.architecture.outside import TOKEN_INPUTS
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
from estimator.architecture.streams import first_stream
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import AltUp, Layer, Mlp, TokenInputs


def altup_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Play a layer; `x` ([N, B, Q, hidden]) is borrowed."""
    mixing, own = spec.altup, spec.token_inputs
    assert mixing is not None
    assert own is not None
    assert isinstance(spec.mlp, Mlp)
    whole = tape.outside[TOKEN_INPUTS]
    given = tape.view(whole, ctx.tokens * own.features, whole.size)
    predictions = _predicted(tape, x, mixing, ctx)
    active = first_stream(tape, predictions, mixing.streams)
    normed = norm(tape, active, spec.input_norm, ctx)
    tape.aside = len(tape.nodes)
    laurel = _laurel(tape, normed, mixing, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    attended = norm_in_place_of(tape, attended, spec.attention_out_norm, ctx)
    gated = add(tape, active, attended)
    both = add(tape, gated, laurel)
    h = scale(tape, both)
    tape.drop(both)
    inner = norm(tape, h, spec.post_norm, ctx)
    fed = _mlp(tape, inner, spec.mlp, ctx)
    fed_normed = norm(tape, fed, spec.mlp_out_norm, ctx)
    activated = add(tape, h, fed_normed)
    corrected = _corrected(tape, predictions, activated, mixing, ctx)
    first = _with_token_inputs(tape, corrected, given, mixing, own, ctx)
    out = _added_to_others(tape, corrected, first, mixing.streams)
    tape.drop(first, activated, fed_normed, fed, inner, h, gated, attended, laurel, normed)
    tape.drop(active, predictions, given, probabilities)
    return out


def _modalities(tape: Tape, x: Tensor, spec: AltUp, ctx: Context) -> Tensor:
    """A number a stream and token, between -1 and 1: [T, N]."""
    normed = norm(tape, x, spec.norm, ctx)
    given = scale(tape, normed)
    tape.drop(normed)
    routed = linear(tape, given, spec.router, ctx)
    wide = cast(tape, routed, 4)
    tanh = tape.op(wide.count, 4, (wide,), saves_out=True)
    tape.drop(wide)
    out = cast(tape, tanh, x.width)
    tape.drop(tanh, routed, given)
    return out


def _predicted(tape: Tape, x: Tensor, spec: AltUp, ctx: Context) -> Tensor:
    """Each stream as all of them predict it, added to what it was; laid out stream by stream."""
    first = first_stream(tape, x, spec.streams)
    modalities = _modalities(tape, first, spec, ctx)
    tape.drop(first)
    coefficients = linear(tape, modalities, spec.prediction, ctx)
    product = tape.op(x.count, x.width, (x, coefficients), operands(x, coefficients))
    # In place on a permuted view: backward copies the gradient for both.
    summed = tape.op(x.count, x.width, (product, x), grads=(product.size, x.size), into=product)
    tape.drop(product)
    out = tape.op(x.count, x.width, (summed,), grads=(PASS,))
    tape.drop(summed, coefficients, modalities)
    return out


def _corrected(
    tape: Tape, predictions: Tensor, activated: Tensor, spec: AltUp, ctx: Context
) -> Tensor:
    """The predictions, each with its share of how far the first was off."""
    modalities = _modalities(tape, activated, spec, ctx)
    predicted = first_stream(tape, predictions, spec.streams)
    off = tape.op(activated.count, activated.width, (activated, predicted), grads=(PASS, NEW))
    tape.drop(predicted)
    repeated = tape.op(predictions.count, off.width, (off,), grads=(off.size,))
    tape.drop(off)
    if ctx.training:
        # The code clamps the weight and multiplies by it itself.
        weight = parameter(spec.correction.weight_count, ctx.width, ctx.full)
        clamped = tape.op(weight.count, weight.width, (weight,), (weight,))
        count = ctx.tokens * spec.streams
        saves = operands(modalities, clamped)
        shares = tape.op(count, modalities.width, (clamped, modalities), saves, viewed=True)
        tape.drop(clamped)
    else:
        shares = linear(tape, modalities, spec.correction, ctx)
    raised = tape.op(shares.count, shares.width, (shares,), grads=(PASS,))
    tape.drop(shares)
    full = (repeated.size,) if raised.grad else ()
    saves = operands(repeated, raised)
    product = tape.op(repeated.count, repeated.width, (repeated, raised), saves, temporaries=full)
    tape.drop(repeated, raised, modalities)
    return tape.add_in_place(product, predictions)


def _laurel(tape: Tape, x: Tensor, spec: AltUp, ctx: Context) -> Tensor:
    left = linear(tape, x, spec.left, ctx)
    right = linear(tape, left, spec.right, ctx)
    tape.drop(left)
    normed = norm(tape, right, spec.laurel_norm, ctx)
    out = add(tape, x, normed)
    tape.drop(normed, right)
    return out


def _mlp(tape: Tape, x: Tensor, spec: Mlp, ctx: Context) -> Tensor:
    """Gated, with all factors named to the end; sparse ones cut the gate off below a quantile."""
    assert spec.gate is not None
    gate = linear(tape, x, spec.gate, ctx)
    if spec.cut_off:
        whole, gate = gate, _above_quantile(tape, gate, ctx.tokens)
        tape.drop(whole)
    opened = activation(tape, gate, spec.activation, ctx)
    up = linear(tape, x, spec.up, ctx)
    product = multiply(tape, opened, up)
    out = linear(tape, product, spec.down, ctx)
    tape.drop(product, up, opened, gate)
    return out


def _above_quantile(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """`relu(x - (mean + std * number))`, of each row; `x` is borrowed."""
    mean = tape.op(rows, x.width, (x,))
    deviation = tape.op(rows, x.width, (x,), (x,), saves_out=True, temporaries=(x.size, x.size))
    scaled = scale(tape, deviation)
    cutoff = tape.op(rows, x.width, (mean, scaled), grads=(PASS, PASS))
    tape.drop(scaled)
    difference = tape.op(x.count, x.width, (x, cutoff), grads=(PASS, NEW), temporaries=(x.size,))
    out = tape.op(x.count, x.width, (difference,), saves_out=True)
    tape.drop(difference, cutoff, deviation, mean)
    return out


def _with_token_inputs(
    tape: Tape, corrected: Tensor, given: Tensor, spec: AltUp, own: TokenInputs, ctx: Context
) -> Tensor:
    """What the layer's own input becomes behind a gate made of the first stream."""
    view = first_stream(tape, corrected, spec.streams)
    first = tape.op(view.count, view.width, (view,), grads=(PASS,))
    tape.drop(view)
    if spec.scaled:
        factor = parameter(first.count // ctx.tokens, ctx.width, ctx.full)
        full = (first.size,) if factor.grad else ()
        saves = operands(first, factor)
        scaled = tape.op(first.count, first.width, (first, factor), saves, temporaries=full)
        tape.drop(first)
        first = scaled
    gate = linear(tape, first, own.gate, ctx)
    tape.drop(first)
    opened = activation(tape, gate, own.activation, ctx)
    tape.drop(gate)
    product = multiply(tape, opened, given)
    tape.drop(opened)
    projected = linear(tape, product, own.out, ctx)
    tape.drop(product)
    return norm_in_place_of(tape, projected, own.norm, ctx)


def _added_to_others(tape: Tape, x: Tensor, first: Tensor, streams: int) -> Tensor:
    """`x[1:] += first`, in place on a slice (`x` is consumed).

    Python adds to the slice, and sets it again: autograd rewrites the whole of x twice, each time
    with a copy of the gradient's slice.
    """
    others = x.count // streams * (streams - 1)
    slice_bytes = (others * x.width,)
    added = tape.op(
        x.count, x.width, (x, first), grads=(x.size, first.size), temporaries=slice_bytes, into=x
    )
    part = tape.view(added, others, added.size)
    out = tape.op(
        x.count,
        x.width,
        (added, part),
        grads=(added.size, part.size),
        temporaries=slice_bytes,
        into=added,
    )
    tape.drop(part, added, x)
    return out
