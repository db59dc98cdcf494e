"""Formulas of rotary positions that work on pairs of features, with tables that layers share.

Source: `apply_rotary_pos_emb_interleave` in transformers/models/deepseek_v3, `apply_rotary_emb` in
deepseek_v2 and llama4, `_apply_rotary_emb` in gpt_oss (modeling_*.py).
"""

from __future__ import annotations

from collections.abc import Callable

from estimator.architecture.parts import add, cast, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted


def _interleaved(tape: Tape, x: Tensor, width: int) -> Tensor:
    """Even and odd features, rotated pair by pair and laid side by side."""
    even, odd = (tape.view(x, x.count // 2, x.size) for _ in range(2))
    return _both(tape, x, even, odd, width)


def _chunked(tape: Tape, x: Tensor, width: int) -> Tensor:
    """The same of two halves, whose gradients backward joins."""
    front, back = tape.split(x, (x.count // 2,) * 2, x.size)
    return _both(tape, x, front, back, width)


def _both(tape: Tape, x: Tensor, even: Tensor, odd: Tensor, width: int) -> Tensor:
    first = _combined(tape, even, odd, NEW, width)
    second = _combined(tape, odd, even, PASS, width)
    out = tape.op(x.count, first.width, (first, second), grads=(PASS, PASS))
    tape.drop(first, second, even, odd)
    return out


def _combined(tape: Tape, a: Tensor, b: Tensor, grad: int, width: int) -> Tensor:
    """`a * cos -+ b * sin`: a difference negates the second gradient."""
    left, right = _times(tape, a, width), _times(tape, b, width)
    out = tape.op(a.count, left.width, (left, right), grads=(PASS, grad))
    tape.drop(left, right)
    return out


def _times(tape: Tape, x: Tensor, width: int) -> Tensor:
    """`x * table`; the gradient of a product that the table made wider is cast by the engine."""
    wide = promoted(width, x.width)
    if wide == x.width:
        return scale(tape, x)
    return tape.op(x.count, wide, (x,), temporaries=(wide * x.count,))


def _halves(tape: Tape, x: Tensor, width: int) -> Tensor:
    """Llama's `x * cos + rotate_half(x) * sin`."""
    first = _times(tape, x, width)
    front, back = (tape.view(x, x.count // 2, x.size) for _ in range(2))
    negated = scale(tape, back)
    turned = tape.op(x.count, x.width, (negated, front), grads=(PASS, PASS))
    tape.drop(negated, front, back)
    second = _times(tape, turned, width)
    tape.drop(turned)
    out = add(tape, first, second)
    tape.drop(first, second)
    return out


def _complex(tape: Tape, x: Tensor, width: int) -> Tensor:
    """fp32 pairs read as complex numbers, times the shared factors, and back."""
    wide = cast(tape, x, 4)
    turned = scale(tape, wide)
    out = cast(tape, turned, x.width)
    tape.drop(wide, turned)
    return out


ROTATIONS: dict[str, Callable[[Tape, Tensor, int], Tensor]] = {
    "interleaved": _interleaved,
    "chunked": _chunked,
    "halves": _halves,
    "complex": _complex,
}
"""By `Latent.rotation` or `Attention.rotary_style`; each borrows its input and is
told the bytes of an element of its tables."""
