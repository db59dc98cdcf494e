"""Formulas of Gemma 4: values that are normalized, full layers without a projection of their own
for them, and experts beside the MLP.

Source: transformers/models/gemma4/modeling_gemma4.py, `Gemma4TextAttention.forward`,
`Gemma4TextDecoderLayer.forward`, `Gemma4TextRouter.forward`.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.experts import experts, gather
from estimator.architecture.feed_forward import mlp
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm, norm_in_place_of
from estimator.architecture.outside import TOKEN_INPUTS, state_names
from estimator.architecture.parts import (
    activation,
    add,
    linear,
    multiply,
    operands,
    parameter,
    scale,
)
from estimator.architecture.rotary import rotate_alone
from estimator.architecture.routers import divided_by_sum, softmax_fp32
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention, Layer, Moe, Norm, TokenInputs


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    assert spec.query is not None
    first = len(tape.nodes) if tape.aside is None else tape.aside
    query = _turned(tape, linear(tape, x, spec.query, ctx), spec, ctx)
    key, value = _keys_and_values(tape, x, spec, ctx, range(first, len(tape.nodes)))
    out, probabilities = attend(tape, query, key, value, spec, ctx)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query)
    if spec.reads_states or not ctx.stores_all:
        # Else they belong to the cache.
        tape.drop(key, value)
    return result, probabilities


def _keys_and_values(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context, of_queries: range
) -> tuple[Tensor, Tensor]:
    """Return the layer's own keys and values, or those that an earlier layer named."""
    names = state_names(spec)
    if spec.reads_states:
        key, value = (tape.alias(tape.outside[name]) for name in names)
        return key, value
    assert spec.key is not None
    key = linear(tape, x, spec.key, ctx)
    value = tape.alias(key) if spec.value is None else linear(tape, x, spec.value, ctx)
    key = _turned(tape, key, spec, ctx)
    value = norm_in_place_of(tape, value, Norm("rms_pow_unweighted", spec.head_dim), ctx)
    if spec.shares_states and ctx.checkpointing:
        # Else autograd, or the cache, has them for as long.
        tape.share((key, value), beside=of_queries)
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx)
    if spec.shares_states:
        tape.outside.update(zip(names, (key, value), strict=True))
    return key, value


def _turned(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor:
    """Normalize each head and rotate it; `x` is consumed."""
    normed = norm_in_place_of(tape, x, spec.qk_norm, ctx)
    out = rotate_alone(tape, normed, spec, ctx)
    tape.drop(normed)
    return out


def gemma4_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Play a layer; `x` ([B, Q, hidden]) is borrowed."""
    own = None
    if spec.token_inputs is not None:
        whole = tape.outside[TOKEN_INPUTS]
        # Backward copies its gradient into zeros of all layers' inputs.
        own = tape.view(whole, ctx.tokens * spec.token_inputs.features, whole.size)
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = attention(tape, normed, spec.attention, ctx)
    tape.drop(normed)
    attended = norm_in_place_of(tape, attended, spec.attention_out_norm, ctx)
    residual = add(tape, x, attended)
    tape.drop(attended)
    normed = norm(tape, residual, spec.post_norm, ctx)
    held: tuple[Tensor | None, ...] = (probabilities,)
    if isinstance(spec.mlp, Moe):
        assert spec.mlp.shared is not None
        fed = mlp(tape, normed, spec.mlp.shared, ctx)
        tape.drop(normed)
        fed, held = _with_experts(tape, residual, fed, spec.mlp, ctx, probabilities)
    else:
        assert spec.mlp is not None
        fed = mlp(tape, normed, spec.mlp, ctx)
        tape.drop(normed)
    fed = norm_in_place_of(tape, fed, spec.mlp_out_norm, ctx)
    summed = add(tape, residual, fed)
    tape.drop(fed)
    if spec.token_inputs is not None:
        assert own is not None
        tape.drop(residual)
        residual, summed = summed, _with_token_inputs(tape, summed, own, spec.token_inputs, ctx)
        tape.drop(own)
    # `hidden_states *= self.layer_scalar`, a buffer that backward needs.
    scalar = parameter(1, ctx.width, False)
    out = tape.op(summed.count, summed.width, (summed,), (scalar,), into=summed)
    tape.drop(summed, residual, *held)
    return out


def _with_token_inputs(
    tape: Tape, x: Tensor, own: Tensor, spec: TokenInputs, ctx: Context
) -> Tensor:
    """Add what the layer's own input becomes behind a gate made of `x`; both are borrowed."""
    gate = linear(tape, x, spec.gate, ctx)
    activated = activation(tape, gate, spec.activation, ctx)
    tape.drop(gate)
    product = multiply(tape, activated, own)
    tape.drop(activated)
    projected = linear(tape, product, spec.out, ctx)
    tape.drop(product)
    normed = norm_in_place_of(tape, projected, spec.norm, ctx)
    out = add(tape, x, normed)
    tape.drop(normed)
    return out


def _with_experts(
    tape: Tape,
    residual: Tensor,
    fed: Tensor,
    spec: Moe,
    ctx: Context,
    probabilities: Tensor | None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Add the experts' output to the MLP's (`fed`, consumed); both are normalized first.

    Returns:
        the sum, and what the layer still names.
    """
    behind_mlp, before, behind = spec.norms
    first = norm(tape, fed, behind_mlp, ctx)
    rows = tape.view(residual, residual.count)
    held, scores = _route(tape, rows, spec, ctx)
    # The router's answer takes the name by which the layer held the attention's probabilities.
    tape.drop(probabilities)
    given = norm(tape, rows, before, ctx)
    second = experts(tape, given, scores, spec, ctx)
    tape.drop(given)
    second = norm_in_place_of(tape, second, behind, ctx)
    out = add(tape, first, second)
    tape.drop(fed)
    return out, (first, second, rows, scores, *held)


def _route(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[tuple[Tensor, ...], Tensor]:
    """Softmax in fp32 of a linear of the normalized and scaled tokens ([T, hidden], borrowed).

    Returns:
        probabilities, [T, experts], and indices, [T, k] int64, which the layer still names, and
        the scores, [T, k] in fp32.
    """
    assert spec.router_linear is not None
    pairs = ctx.tokens * spec.active
    normed = norm(tape, x, Norm("rms_pow_unweighted", spec.hidden), ctx)
    columns = parameter(spec.hidden, ctx.width, ctx.full)
    temporaries = (normed.size,) if columns.grad else ()
    saves = operands(normed, columns)
    product = tape.op(normed.count, normed.width, (normed, columns), saves, temporaries=temporaries)
    given = scale(tape, product)
    tape.drop(normed, product)
    logits = linear(tape, given, spec.router_linear, ctx, viewed=False)
    wide = softmax_fp32(tape, logits, spec, ctx)
    indices = tape.new(pairs, 8)
    values = tape.op(pairs, 4, (wide,), (indices,), grads=(wide.size,))
    shares = divided_by_sum(tape, values, ctx)
    factors = gather(tape, parameter(spec.experts, ctx.width, ctx.full), pairs, indices)
    temporaries = (4 * pairs,) if factors.grad and factors.width != 4 else ()
    scores = tape.op(
        pairs, 4, (shares, factors), operands(shares, factors), temporaries=temporaries
    )
    tape.drop(shares, factors, logits, given)
    return (wide, indices), scores
