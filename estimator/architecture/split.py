"""Formulas of attention whose queries, keys and values are views of one linear's output.

Source: transformers/models/gpt_neox/modeling_gpt_neox.py (`GPTNeoXAttention.forward`,
`apply_rotary_pos_emb`, `GPTNeoXLayer.forward`), gpt_bigcode/modeling_gpt_bigcode.py.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.kernels import attend
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.parts import add, dropout, linear
from estimator.architecture.rotary import rotate_states
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention, Layer


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    assert spec.fused is not None
    fused = linear(tape, x, spec.fused, ctx)
    # Where the parts of a head lie side by side, backward joins the three gradients head by head
    # and then copies them into rows of tokens; a single key/value head needs no such copy.
    by_head = spec.kv_heads > 1
    rows = tape.view(fused, fused.count, fused.size if by_head else PASS)
    count = fused.count // (spec.heads + 2 * spec.kv_heads)
    keys = count * spec.kv_heads
    query, key, value = tape.split(rows, (count * spec.heads, keys, keys), fused.size)
    if spec.rotary:
        rotated = rotate_states(tape, query, key, spec, ctx)
        tape.drop(query, key)
        query, key = rotated.query, rotated.key
    if ctx.cached:
        cached = grow_cache(tape, key, value, spec, ctx)
        tape.drop(key, value)
        key, value = cached
    # Joining what is rotated to the rest lays queries and keys out head by head.
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head=spec.rotary)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, rows, fused)
    if not ctx.stores_all:
        tape.drop(key, value)
    return result, probabilities


def parallel_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Attention and MLP of two norms of the same input, summed: `mlp + attention + x`."""
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = attention(tape, normed, spec.attention, ctx)
    tape.drop(normed)
    attended = _dropped(tape, attended, spec, ctx)
    normed = norm(tape, x, spec.post_norm, ctx)
    fed = feed_forward(tape, normed, spec.mlp, ctx)
    tape.drop(normed)
    fed = _dropped(tape, fed, spec, ctx)
    both = add(tape, fed, attended)
    out = add(tape, both, x)
    tape.drop(both, fed, attended, probabilities)
    return out


def _dropped(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    out = dropout(tape, x, spec.dropout, ctx)
    tape.drop(x)
    return out
