"""Formulas of a 4-bit cache: old tokens quantized, the newest 127 as they are.

Every step dequantizes a layer's whole past; each 128th step quantizes it again.

Source: transformers/cache_utils.py (`QuantizedLayer`, its defaults: quanto, 4 bits, groups of 64,
residual of 128); optimum-quanto's tensor/optimizers, library/quantize.py, tensor/packed.py and
qbits.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention

GROUP = 64
RESIDUAL = 128


@dataclass(frozen=True, slots=True)
class Past:
    """What a cache holds: tokens that are quantized, and the newest as they are."""

    quantized: int
    residual: int

    @classmethod
    def after(cls, prompt: int, steps: int) -> Past:
        """Return it after a prompt and so many decode steps."""
        residual = steps % RESIDUAL
        return cls(prompt + steps - residual, residual)

    def widths(self, key: int, value: int, prompt: int) -> tuple[int, int, int]:
        """Return the bytes of an element of the newest tokens, and of the scales of keys and of
        values: what came in until all was quantized anew, for all is joined first.
        """
        wide = promoted(key, value)
        return (wide, key, value) if self.quantized == prompt else (wide, wide, wide)

    def sizes(self, row: int, width: int, newest_width: int) -> tuple[int, ...]:
        """Return the bytes of a layer's tensors for keys (or values) of `row` elements a token.

        Packed values, a scale and a shift a group; then the newest tokens.
        """
        count = self.quantized * row
        parts = (count // 2, count // GROUP * width, count // GROUP * width)
        return (*parts, self.residual * row * newest_width) if self.residual else parts


def quantized_update(
    tape: Tape, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Add keys and values [B, kv_heads, Q, d] to the cache; return what attention reads."""
    rows = [ctx.batch * features for features in spec.cached_features]
    if not ctx.held_keys:
        for row, state in zip(rows, (key, value), strict=True):
            _quantize(tape, row * ctx.queries, state.width, strided=True)
        return tape.alias(key), tape.alias(value)
    past = Past.after(ctx.prompt, ctx.held_keys - ctx.prompt)
    width, *widths = past.widths(key.width, value.width, ctx.prompt)
    wholes = [
        _dequantize(tape, row * past.quantized, own) for row, own in zip(rows, widths, strict=True)
    ]
    read = [tape.new(row * ctx.keys, width) for row in rows]
    full = past.residual + 1 >= RESIDUAL
    for row, own in zip(rows, widths, strict=True):
        if full:
            _quantize(tape, row * ctx.keys, width, strided=False)
            _free(tape, *Past(past.quantized, 0).sizes(row, own, width))
    for row in rows:
        if not full:
            tape.new(row * (past.residual + 1), width, component="kv_cache")
        if past.residual:
            _free(tape, row * past.residual * width)
    tape.drop(*wholes)
    return read[0], read[1]


def _quantize(tape: Tape, count: int, width: int, strided: bool) -> None:
    """Scales and shifts of groups, then values: shifted, scaled, rounded, clamped and packed."""
    copy = tape.new(count, width) if strided else None
    groups = count // GROUP
    lowest, highest = tape.new(groups, width), tape.new(groups, width)
    span = tape.new(groups, width)
    tape.new(groups, width, component="kv_cache")
    tape.drop(span)
    tape.new(groups, width, component="kv_cache")
    tape.drop(lowest, highest)
    shifted = tape.new(count, width)
    divided = tape.new(count, width)
    tape.drop(shifted)
    rounded = tape.new(count, width)
    tape.drop(divided)
    clamped = tape.new(count, width)
    values = tape.new(count, 1)
    tape.drop(clamped, rounded)
    tape.new(count // 2, 1, component="kv_cache")
    half = tape.new(count // 2, 1)
    tape.drop(half, values, copy)


def _dequantize(tape: Tape, count: int, width: int) -> Tensor:
    """Unpacked halves joined, then scaled; the shift is subtracted in place."""
    halves = []
    for _ in range(2):
        masked = tape.new(count // 2, 1)
        halves.append(tape.new(count // 2, 1))
        tape.drop(masked)
    values = tape.new(count, 1)
    tape.drop(*halves)
    out = tape.new(count, width)
    tape.drop(values)
    return out


def _free(tape: Tape, *sizes: int) -> None:
    """Free what the cache held before this step."""
    for size in sizes:
        tape.drop(Tensor(size, 1, False, Storage(size, "kv_cache")))
