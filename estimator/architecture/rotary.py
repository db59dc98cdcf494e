"""Formulas of rotary positions, by the code that rotates (`Attention.rotary_style`).

All of them compute `x * cos + rotate_half(x) * sin` for queries and keys, and differ in dtypes, in
who repeats cos and sin, and in what they still name at the end:

- `tables`: all in the model's dtype (Llama);
- `fp32_tables`: cos and sin in fp32, so that products are (OLMo);
- `fp32_input`: queries and keys are copied to fp32 first (Cohere);
- `fp32_twice`: they are copied once for each of the two products (ModernBERT);
- `repeated`: each layer repeats its own cos and sin, pair by pair (GLM, Helium);
- `own`: each layer makes its own cos and sin, and names them to its end (RecurrentGemma);
- `fp32_repeated`: the same in fp32, each factor copied to fp32 (ERNIE 4.5);
- `held_parts`: the attention names the rotated and the other part of each head to its end (Phi);
- `complex`: one table of complex factors, fp32 pairs (DeepSeek-V2, Llama 4);
- `chunked`: tables of half a head's features, for each half of it (gpt-oss).

Where `rotary_dim` is given, the code splits each head in two and joins it again, even if all of it
is rotated. Source: `apply_rotary_pos_emb` in transformers/models/*/modeling_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.architecture.context import Context
from estimator.architecture.pair_rotary import ROTATIONS
from estimator.architecture.parts import add, cast, scale
from estimator.architecture.stretches import distinct_layers
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention, ModelSpec

_FP32_TABLES = ("fp32_tables", "fp32_repeated")
_REPEATED = ("repeated", "own", "fp32_repeated")
_CAST_BACK = ("fp32_tables", "fp32_input", "fp32_twice", "fp32_repeated")


def table_bytes(spec: ModelSpec, ctx: Context, features: int) -> int:
    """Return the bytes of one kind of cos and sin, [1, Q, rotated features] each."""
    style = spec.layers[0].attention.rotary_style
    if style == "complex":
        return 4 * ctx.positions * features
    width = 4 if style in _FP32_TABLES else (ctx.input_width or ctx.outer_width)
    if style == "chunked":
        return ctx.positions * features * width
    own = spec.positions_expanded or spec.tables_by_sequence or ctx.sp_size > 1
    rows = ctx.tokens if own and ctx.training else ctx.positions
    return 2 * rows * features * width


def tables_saved(spec: ModelSpec) -> bool:
    """Whether layers save the shared tables for backward, and not repeated ones of their own."""
    attention = spec.layers[0].attention
    turns = any(layer.attention.rotary for layer in distinct_layers(spec))
    return turns and attention.rotary_style not in _REPEATED


@dataclass(slots=True)
class Rotated:
    """Rotated queries and keys, and what the attention's code still names until its end."""

    query: Tensor
    key: Tensor
    held: tuple[Tensor, ...] = ()


def rotate_states(tape: Tape, query: Tensor, key: Tensor, spec: Attention, ctx: Context) -> Rotated:
    """Rotate queries and keys, both of which are borrowed."""
    if spec.rotary_style in ROTATIONS:
        turned = tuple(ROTATIONS[spec.rotary_style](tape, x, ctx.outer_width) for x in (query, key))
        return Rotated(turned[0], turned[1])
    tables = _repeated_tables(tape, spec, ctx)
    if spec.rotary_dim is None:
        turned = _turn(tape, (query, key), spec, ctx, tables)
        tape.drop(*tables)
        return Rotated(turned[0], turned[1])
    parts = [_parts(tape, x, spec) for x in (query, key)]
    turned = _turn(tape, (parts[0][0], parts[1][0]), spec, ctx, tables)
    joined = []
    for first, (_, rest) in zip(turned, parts, strict=True):
        count = first.count + rest.count
        width = promoted(first.width, rest.width)
        grads = tuple(PASS if part.width == width else NEW for part in (first, rest))
        joined.append(tape.op(count, width, (first, rest), grads=grads))
    rests = (parts[0][1], parts[1][1])
    tape.drop(parts[0][0], parts[1][0])
    if spec.rotary_style == "own":
        tape.drop(*turned, *rests)
        return Rotated(joined[0], joined[1], tables)
    tape.drop(*tables)
    if spec.rotary_style == "held_parts":
        return Rotated(joined[0], joined[1], (*turned, *rests))
    tape.drop(*turned, *rests)
    return Rotated(joined[0], joined[1])


def rotate_alone(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor:
    """Rotate queries or keys, which are borrowed, by the shared tables."""
    (turned,) = _turn(tape, (x,), spec, ctx, ())
    return turned


def _parts(tape: Tape, x: Tensor, spec: Attention) -> tuple[Tensor, Tensor]:
    """Views of the rotated and of the other features; a slice of all features is no slice."""
    assert spec.rotary_dim is not None
    count = x.count * spec.rotary_dim // spec.head_dim
    first = tape.view(x, count, PASS if count == x.count else x.size)
    return first, tape.view(x, x.count - count, x.size)


def _repeated_tables(tape: Tape, spec: Attention, ctx: Context) -> tuple[Tensor, ...]:
    if spec.rotary_style not in _REPEATED:
        return ()
    count = ctx.positions * (spec.rotary_dim or spec.head_dim)
    width = 4 if spec.rotary_style in _FP32_TABLES else ctx.width
    return tape.new(count, width), tape.new(count, width)


def _turn(
    tape: Tape,
    states: tuple[Tensor, ...],
    spec: Attention,
    ctx: Context,
    tables: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    if spec.rotary_style == "fp32_input":
        wide = tuple(cast(tape, x, 4) for x in states)
    else:
        wide = tuple(tape.alias(x) for x in states)
    style = spec.rotary_style
    if style in ("tables", "held_parts") and ctx.amp and ctx.width != states[0].width:
        # Under autocast projections are in its half type, but the tables are not.
        style = "fp32_tables"
    turned = tuple(_rotate(tape, x, style, tables) for x in wide)
    if spec.rotary_style not in _CAST_BACK:
        tape.drop(*wide)
        return turned
    outs = tuple(cast(tape, x, given.width) for x, given in zip(turned, states, strict=True))
    tape.drop(*turned, *wide)
    return outs


def rotate(tape: Tape, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
    """Rotate `x` by a layer's own cos and sin, which may be wider than it."""
    return _rotate(tape, x, "own_tables", tables)


def _rotate(tape: Tape, x: Tensor, style: str, tables: tuple[Tensor, ...]) -> Tensor:
    given = x
    if style == "fp32_twice":
        x = cast(tape, given, 4)
    first = _times_table(tape, x, style, tables[:1])
    if style == "fp32_twice":
        tape.drop(x)
        x = cast(tape, given, 4)
    # Each slice's gradient is copied into zeros of the whole, the negated one's first.
    front, back = (tape.view(x, x.count // 2, x.size) for _ in range(2))
    negated = tape.op(back.count, x.width, (back,))
    halves = tape.op(x.count, x.width, (negated, front), grads=(PASS, PASS))
    tape.drop(negated, front, back)
    if style == "fp32_twice":
        tape.drop(x)
    if style == "fp32_repeated":
        narrow, halves = halves, cast(tape, halves, 4)
        tape.drop(narrow)
    second = _times_table(tape, halves, style, tables[1:])
    tape.drop(halves)
    out = add(tape, first, second)
    tape.drop(first, second)
    return out


def _times_table(tape: Tape, x: Tensor, style: str, table: tuple[Tensor, ...]) -> Tensor:
    """`x * table`; a layer's own table is saved, the one that all layers share is counted once."""
    if style == "fp32_tables" and x.width != 4:
        # The fp32 product of backward is cast to the input's dtype by the engine.
        return tape.op(x.count, 4, (x,), temporaries=(4 * x.count,))
    if style == "fp32_repeated":
        wide = cast(tape, x, 4)
        out = tape.op(x.count, 4, (wide,), table)
        tape.drop(wide)
        return out
    if table:
        width = promoted(table[0].width, x.width)
        temporaries = (width * x.count,) if width != x.width else ()
        return tape.op(x.count, width, (x,), table, temporaries=temporaries)
    return scale(tape, x)
