"""The kernels of attention: which one CUDA chooses, and what each makes, saves and holds.

`kernel` is the same rule as profiler/trace/attention.py has for real tensors. Source:
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and attention.cpp; transformers/integrations/
sdpa_attention.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.architecture.context import MAX_FLASH_HEAD, Context
from estimator.architecture.eager_attention import eager_attention, expand_head, repeat_heads
from estimator.architecture.parts import cast
from estimator.architecture.recomputation import recomputed
from estimator.architecture.sdpa_math import math_attention
from estimator.architecture.sequence_parallel import spread
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention
from estimator.units import round_up


def masked(spec: Attention, ctx: Context) -> bool:
    """Whether sdpa is given a mask: for a window that the keys reach, by Falcon, and for what
    is not filled yet of a static cache.

    Source: transformers/masking_utils.py, `_ignore_causal_mask_sdpa`, `create_causal_mask`.
    """
    if ctx.cache == "paged":
        return False
    if ctx.slots and ctx.decoding:
        return True
    return spec.masked or (spec.window is not None and ctx.keys >= spec.window)


def kernel(spec: Attention, ctx: Context) -> str:
    """Return what runs: `eager`, `flash`, `efficient` or `math`.

    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, `select_sdp_backend`.
    """
    if ctx.attention == "eager":
        return "eager"
    if ctx.attention == "flash_attention_2":
        return "flash"
    if spec.groups > 1 and not spec.enable_gqa:
        return "math"
    small = spec.value_size == spec.head_dim <= MAX_FLASH_HEAD
    if ctx.half and not masked(spec, ctx) and small:
        return "flash"
    grouped = spec.groups > 1 and not _repeats_first(spec, ctx)
    alignment = 8 if ctx.half else 4
    aligned = spec.head_dim % alignment == 0 == spec.value_size % alignment
    return "efficient" if not grouped and aligned else "math"


def _repeats_first(spec: Attention, ctx: Context) -> bool:
    """Whether transformers repeats keys and values for all query heads before it calls sdpa.

    Source: transformers/integrations/sdpa_attention.py, `use_gqa_in_sdpa`.
    """
    small = spec.value_size == spec.head_dim <= MAX_FLASH_HEAD
    return spec.groups > 1 and (masked(spec, ctx) or not small)


def attend(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    by_head: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel: [B, Q, heads * d], and for eager the probabilities.

    `by_head` is whether queries (and keys) lie in memory as [B, heads, Q, d]; `mask` is one that
    the layer has made itself.
    """

    def core(
        played: Tape, q: Tensor, k: Tensor, v: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return _attend(played, q, k, v, spec, ctx, by_head)

    if ctx.sp_size > 1:
        return spread(tape, (query, key, value), spec, ctx, _attend), None
    if ctx.selective:
        inputs = (query, key, value) if mask is None else (query, key, value, mask)
        return recomputed(tape, inputs, core)
    return core(tape, query, key, value)


def _attend(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    by_head: bool,
) -> tuple[Tensor, Tensor | None]:
    wide = ctx.attention == "flash_attention_2" and query.width == 4
    if wide or (ctx.amp is not None and ctx.attention != "eager"):
        return _in_half(tape, query, key, value, spec, ctx, by_head), None
    chosen = kernel(spec, ctx)
    if ctx.slots and ctx.attention == "sdpa" and not masked(spec, ctx):
        # A prefill reads no further than its prompt (sdpa_attention_forward cuts the rest off).
        ctx = replace(ctx, keys=ctx.queries)
    if chosen == "eager":
        return eager_attention(tape, query, key, value, spec, ctx, by_head)
    if chosen != "flash" and spec.enable_gqa and _repeats_first(spec, ctx):
        return _with_repeated(tape, query, key, value, spec, ctx), None
    if chosen == "math":
        if not ctx.slots:
            return math_attention(tape, query, key, value, spec, ctx, masked(spec, ctx)), None
        # Of a cache with room for more, what is there.
        rows = ctx.batch * ctx.keys * spec.kv_heads
        read = tape.view(key, rows * spec.head_dim), tape.view(value, rows * spec.value_size)
        out = math_attention(tape, query, *read, spec, ctx, masked(spec, ctx))
        tape.drop(*read)
        return out, None
    if chosen == "flash" and spec.value_size != spec.head_dim:
        return _flash_of_narrow_values(tape, query, key, value, spec, ctx), None
    out = _fused(tape, query, key, value, spec, ctx, chosen)
    if by_head and chosen == "flash" and ctx.queries > 1:
        # Flash's output lies as the queries do: it is copied into [B, Q, heads, d].
        copy = tape.op(out.count, out.width, (out,), grads=(PASS,))
        tape.drop(out)
        return copy, None
    return out, None


def _in_half(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    by_head: bool,
) -> Tensor:
    """Queries, keys and values are cast to half precision: by autocast, or for flash-attn.

    transformers repeats keys and values, and cuts them, before autocast sees them. flash-attn knows
    nothing wider, and transformers casts for it what comes in fp32, as of a base that is prepared
    for k-bit training (modeling_flash_attention_utils.py, `fa_peft_integration_check`); autocast
    leaves it alone.
    """
    half = ctx.amp or "bfloat16"
    given = ctx.attention == "flash_attention_2" and query.width != 4
    width = query.width if given else ctx.amp_width
    inner = replace(ctx, width=width, half=half, amp=None, mask_width=ctx.width)
    cuts = bool(ctx.slots) and ctx.attention == "sdpa" and not masked(spec, ctx)
    if cuts:
        inner = replace(inner, keys=ctx.queries, slots=0)
    repeats = kernel(spec, inner) != "flash" and spec.enable_gqa and _repeats_first(spec, inner)
    keys, values = tape.alias(key), tape.alias(value)
    if repeats:
        repeat = repeat_heads if spec.kv_heads > 1 else expand_head
        tape.drop(keys, values)
        keys, values = repeat(tape, key, spec), repeat(tape, value, spec)
    counts = [ctx.batch * inner.keys * spec.kv_heads * n for n in (spec.head_dim, spec.value_size)]
    q = cast(tape, query, width)
    k, v = (
        _cut_cast(tape, x, count if cuts and not repeats else x.count, width)
        for x, count in zip((keys, values), counts, strict=True)
    )
    if repeats:
        out = _of_repeated(tape, q, k, v, spec, inner)
    else:
        out, _ = _attend(tape, q, k, v, spec, inner, False)
    tape.drop(keys, values)
    turned = by_head and ctx.queries > 1 and not repeats and kernel(spec, inner) == "flash"
    if ctx.attention == "sdpa":
        # The casts are gone when the output is laid out again.
        tape.drop(q, k, v)
    copy = tape.op(out.count, out.width, (out,), grads=(PASS,)) if turned else tape.alias(out)
    tape.drop(out)
    if ctx.attention != "sdpa":
        tape.drop(q, k, v)
    return copy


def _cut_cast(tape: Tape, x: Tensor, count: int, width: int) -> Tensor:
    """The first `count` elements in `width` bytes an element."""
    cut = tape.alias(x) if count == x.count else tape.view(x, count, x.size)
    out = cast(tape, cut, width)
    tape.drop(cut)
    return out


def _with_repeated(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> Tensor:
    repeat = repeat_heads if spec.kv_heads > 1 else expand_head
    keys, values = repeat(tape, key, spec), repeat(tape, value, spec)
    out = _of_repeated(tape, query, keys, values, spec, ctx)
    tape.drop(keys, values)
    return out


def _of_repeated(
    tape: Tape, query: Tensor, keys: Tensor, values: Tensor, spec: Attention, ctx: Context
) -> Tensor:
    """Attention with keys and values of all query heads."""
    every = replace(spec, kv_heads=spec.heads)
    if kernel(every, ctx) == "math":
        by_head = spec.kv_heads > 1 or ctx.batch == 1
        return math_attention(tape, query, keys, values, every, ctx, masked(spec, ctx), by_head)
    return _fused(tape, query, keys, values, every, ctx, "efficient")


def _fused(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, spec: Attention, ctx: Context, name: str
) -> Tensor:
    """Flash or memory-efficient: saves queries, keys, values, the output and a logsumexp.

    Backward holds fp32 accumulators: see profiler/trace/scratch.py for their sources.
    """
    if name == "flash" and spec.head_dim % 8:
        return _padded(tape, query, key, value, spec, ctx)
    B, Q, a, d, dv = ctx.batch, ctx.queries, spec.heads, spec.head_dim, spec.value_size
    q_bytes = B * Q * a * d * ctx.width
    k_bytes, v_bytes = (B * ctx.keys * spec.kv_heads * n * ctx.width for n in (d, dv))
    if name == "flash":
        rows = round_up(Q, 128)
        wide = round_up(d, 32 if d <= 128 else 64)
        temporaries: tuple[int, ...] = (4 * B * a * rows, 4 * B * a * rows * wide)
        if spec.groups > 1:
            expanded = B * ctx.keys * a * d * ctx.width
            temporaries += (expanded, expanded)
        logsumexp = 4 * B * a * Q
    else:
        temporaries = (4 * B * Q * a, 4 * B * Q * a * d)
        logsumexp = 4 * B * a * round_up(Q, 32)
    mask, given = _additive_mask(tape, spec, ctx) if name == "efficient" else (None, None)
    inputs = (query, key, value)
    saves = inputs if mask is None else (*inputs, mask)
    out = tape.op(
        B * Q * a * dv,
        ctx.width,
        inputs,
        saves,
        saves_out=True,
        aux=(logsumexp,) if name == "flash" or ctx.training else (),
        grads=(q_bytes, k_bytes, v_bytes),
        temporaries=temporaries,
    )
    tape.drop(mask, given)
    return out


def _flash_of_narrow_values(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> Tensor:
    """Flash wants values as wide as keys: they are padded, and the output is cut and copied.

    Source: transformers/integrations/flash_attention.py, `flash_attention_forward`.
    """
    wide = value.count // spec.value_size * spec.head_dim
    padded = tape.op(wide, value.width, (value,))
    out = _fused(tape, query, key, padded, replace(spec, value_dim=None), ctx, "flash")
    tape.drop(padded)
    count = out.count // spec.head_dim * spec.value_size
    cut = tape.op(count, out.width, (out,), grads=(out.size,))
    tape.drop(out)
    return cut


def _padded(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> Tensor:
    """Flash wants head sizes of whole 8s: padded copies go in, and the output is cut and copied.

    Source: aten/src/ATen/native/transformers/attention.cpp, `pad_last_dim`; flash-attn pads alike.
    """
    wide = replace(spec, head_dim=round_up(spec.head_dim, 8))
    q, k, v = (
        tape.op(x.count // spec.head_dim * wide.head_dim, x.width, (x,))
        for x in (query, key, value)
    )
    out = _fused(tape, q, k, v, wide, ctx, "flash")
    tape.drop(q, k, v)
    cut = tape.op(out.count // wide.head_dim * spec.head_dim, out.width, (out,), grads=(out.size,))
    tape.drop(out)
    return cut


def _additive_mask(
    tape: Tape, spec: Attention, ctx: Context
) -> tuple[Tensor | None, Tensor | None]:
    """The mask of a window in the queries' dtype, rows padded to 16 keys, made by each layer; and
    what autocast's wrapper of the kernel still names.

    Source: aten/src/ATen/native/transformers/attention.cpp, `convert_boolean_attn_mask` and
    `pad_bias`.
    """
    if not masked(spec, ctx):
        return None, None
    if spec.distances is not None:
        # All layers share one that is additive already (Falcon); only padding copies it.
        rows = ctx.batch * spec.heads * ctx.queries
        narrow = None
        if ctx.mask_width not in (None, ctx.width):
            # Autocast hands it to sdpa in half precision.
            narrow = tape.new(rows * ctx.keys, ctx.width)
        if not ctx.keys % 16:
            return narrow, None
        return tape.new(rows * round_up(ctx.keys, 16), ctx.width), narrow
    rows = ctx.batch * ctx.queries
    mask = tape.new(rows * ctx.keys, ctx.width)
    inverted = tape.new(rows * ctx.keys, 1)
    tape.drop(inverted)
    if ctx.keys % 16:
        padded = tape.new(rows * round_up(ctx.keys, 16), ctx.width)
        tape.drop(mask)
        return padded, None
    return mask, None
