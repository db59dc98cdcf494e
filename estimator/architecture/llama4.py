"""Formulas of Llama 4's attention: complex rotations, norms without weights, scaled queries.

Source: transformers/models/llama4/modeling_llama4.py, `Llama4TextAttention.forward`,
`apply_rotary_emb`.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm
from estimator.architecture.parts import cast, linear, scale
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    assert spec.query is not None
    assert spec.key is not None
    assert spec.value is not None
    query = linear(tape, x, spec.query, ctx)
    key = linear(tape, x, spec.key, ctx)
    value = linear(tape, x, spec.value, ctx)
    if spec.rotary:
        query, key = _rotated(tape, query, key)
    if spec.qk_norm is not None:
        for_queries, for_keys = (norm(tape, state, spec.qk_norm, ctx) for state in (query, key))
        tape.drop(query, key)
        query, key = for_queries, for_keys
    factors = None
    if spec.query_scaled:
        query, factors = _scaled(tape, query, ctx)
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx)
    out, probabilities = attend(tape, query, key, value, spec, ctx)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, factors)
    if not ctx.cached:
        tape.drop(key, value)
    return result, probabilities


def _rotated(tape: Tape, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp32 as complex numbers, times the shared factors, and back; both are consumed."""
    wide = [cast(tape, x, 4) for x in (query, key)]
    turned = [scale(tape, x) for x in wide]
    outs = [cast(tape, x, query.width) for x in turned]
    tape.drop(*wide, *turned, query, key)
    return outs[0], outs[1]


def _scaled(tape: Tape, query: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """`query * factor`, an fp32 number a position: the product is fp32, too, and cast back."""
    factors = tape.new(ctx.positions, 4)
    product = tape.op(query.count, 4, (query,), (factors,), temporaries=(4 * query.count,))
    out = cast(tape, product, query.width)
    tape.drop(product, query)
    return out, factors
