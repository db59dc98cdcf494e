"""What a model holds before and between steps: parameters, buffers, gradients, states.

Every tensor is a block of its own in the allocator, so sizes are summed tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from estimator.allocator import (
    MIN_LARGE_BYTES,
    SMALL_BYTES,
    CachingAllocator,
    expected_block,
)
from estimator.architecture.context import WIDTHS, prepared, stack_of
from estimator.architecture.quantized import quantized_blocks
from estimator.case import Case, Lora
from estimator.spec import Layer, Linear, ModelSpec, Moe


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that tensors ask for, and the blocks that they get."""

    requested_bytes: int = 0
    allocated_bytes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            self.requested_bytes + other.requested_bytes,
            self.allocated_bytes + other.allocated_bytes,
        )


def held(counts: Sequence[int], width: int, copies: int = 1) -> Held:
    """Return the bytes of tensors of `counts` elements, allocated one after the other.

    Args:
        copies: how many of each are made in a row (an optimizer's states).

    Tensors between 1 and 10 MiB share segments of 20 MiB, or what larger ones leave of theirs, and
    the last of each segment also gets a rest of up to 1 MiB: where there are any, all are played
    on the allocator's model.
    """
    return _held(tuple(counts), width, copies)


@lru_cache(maxsize=512)
def _held(counts: tuple[int, ...], width: int, copies: int) -> Held:
    # Remembered, because a model is asked about again and again at other batches and lengths.
    sizes = [count * width for count in counts]
    requested = copies * sum(sizes)
    if not any(SMALL_BYTES < size < MIN_LARGE_BYTES for size in sizes):
        return Held(requested, copies * sum(map(expected_block, sizes)))
    allocator = CachingAllocator()
    for size in sizes:
        for _ in range(copies):
            allocator.allocate(size)
    return Held(requested, allocator.allocated_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """Elements of each parameter tensor of the base and of the adapters, and bytes of buffers.

    Equal only to itself: what is derived from one is remembered.
    """

    base: tuple[int, ...]
    adapters: tuple[int, ...]
    buffers_bytes: tuple[int, ...]
    quantizable: tuple[Linear, ...]
    rotary_caches: tuple[int, ...] = ()
    """Elements of cos, and of sin, of all positions: what older stacks kept in each layer."""

    table: int = 0
    """Elements of a computed table of positions."""
    table_cast: bool = False
    """Whether that table is loaded in fp32, and cast by the first forward pass."""
    fp32: tuple[int, ...] = ()
    """Elements of each of the base's tensors that stays in fp32."""
    frozen: tuple[int, ...] = ()
    """Elements of each tensor that never trains, in fp32."""
    cast_buffers: tuple[int, ...] = ()
    """Elements of each buffer in the dtype as loaded."""
    idle: tuple[int, ...] = ()
    """Elements of each of the base's tensors that never gets a gradient."""
    idle_adapters: tuple[int, ...] = ()
    """Elements of each adapter matrix that never gets a gradient."""
    bypassed: tuple[int, ...] = ()
    """Elements of each adapter matrix that gets no gradient where nothing is quantized."""

    @property
    def base_count(self) -> int:
        """Parameters of the base."""
        return sum(self.base) + sum(self.frozen)

    @property
    def adapter_count(self) -> int:
        """Parameters of the adapters."""
        return sum(self.adapters)


@lru_cache(maxsize=64)
def inventory(spec: ModelSpec, lora: Lora | None) -> Inventory:
    """Count a model's tensors."""
    adapters: list[int] = []
    if lora is not None:
        for layer in spec.layers:
            adapters += adapter_tensors(layer, lora)
        for linear in spec.outer_linears:
            adapters += linear_adapters(linear, lora)
    buffers: list[int] = []
    if spec.rope_tables:
        # inv_freq and original_inv_freq, fp32, half of what is rotated each.
        for features in spec.table_features:
            buffers += [4 * (features // 2)] * 2
    inner = (linear for layer in spec.layers for linear in layer.counted_linears)
    linears = tuple(linear for linear in (*inner, *spec.outer_linears) if linear.quantizable)
    if spec.tied and spec.final_norm is not None and not spec.final_norm.shapes:
        # What holds the model's last parameter is not quantized: the head, or the final norm, but
        # without either the last linear (transformers/quantizers/base.py, OLMo 1B).
        linears = linears[:-1]
    buffers += spec.buffers
    caches: tuple[int, ...] = ()
    if spec.rope_tables and spec.max_positions:
        caches = (spec.max_positions * spec.rotary_dim,) * len(spec.layers)
    return Inventory(
        tuple(spec.parameter_counts()),
        tuple(adapters),
        tuple(buffers),
        linears,
        caches,
        spec.fixed_positions * spec.hidden_size,
        spec.fixed_positions_cast,
        tuple(spec.fp32_counts()),
        tuple(spec.frozen_counts()),
        spec.cast_buffers,
        tuple(spec.idle_counts()),
        tuple(_idle_adapters(spec, lora)),
        tuple(_bypassed(spec, lora)),
    )


def _idle_adapters(spec: ModelSpec, lora: Lora | None) -> Iterator[int]:
    if lora is None:
        return
    for layer in spec.layers:
        for linear in (*layer.idle_linears, *layer.shadows):
            yield from linear_adapters(linear, lora)


def _bypassed(spec: ModelSpec, lora: Lora | None) -> Iterator[int]:
    if lora is None:
        return
    for layer in spec.layers:
        for linear in layer.linears:
            if linear.bypassed:
                yield from linear_adapters(linear, lora)


@lru_cache(maxsize=64)
def elements(items: Inventory, width: int) -> tuple[int, ...]:
    """Return the base's tensors as elements of `width` bytes: one in fp32 counts as several."""
    wide = Counter(items.fp32)
    counts = []
    for count in items.base:
        known = wide[count] > 0
        wide[count] -= known
        counts.append(count * 4 // width if known else count)
    return tuple(counts)


def adapter_tensors(layer: Layer, lora: Lora) -> Iterator[int]:
    """Yield the elements of each adapter matrix of a layer: A [r, in] and B [out, r],
    and DoRA's magnitudes [out]."""
    if isinstance(layer.mlp, Moe):
        for name in layer.mlp.adapted(lora.target_modules):
            yield from layer.mlp.adapter_counts(name, lora.r)
    for linear in (*layer.linears, *layer.shadows):
        yield from linear_adapters(linear, lora)


def linear_adapters(linear: Linear, lora: Lora) -> Iterator[int]:
    """Yield the elements of a linear's A [r, in], B [out, r], and DoRA's magnitudes [out]."""
    if not linear.adaptable:
        return
    if lora.target_modules == "all-linear" or linear.name in lora.target_modules:
        yield lora.r * linear.inputs
        yield linear.outputs * lora.r
        if lora.use_dora:
            yield linear.outputs


def position_table(case: Case, items: Inventory, loaded: bool) -> Held:
    """Return the bytes of a computed table of positions, as loaded or as the first forward pass
    leaves it: in the dtype of what it is added to."""
    return held((items.table,), _table_width(case, items, loaded))


def _table_width(case: Case, items: Inventory, loaded: bool) -> int:
    cast = 4 if loaded or prepared(case) else WIDTHS[case.dtype]
    return cast if items.table_cast else WIDTHS[case.dtype]


def weights(case: Case, items: Inventory) -> Held:
    """Return the bytes of all parameters and buffers as loaded."""
    total = _base_weights(items, *_as_loaded(case))
    for counts, width, copies in _beside_base(case, items):
        total += held(counts, width, copies)
    return total


def weight_sizes(case: Case, items: Inventory) -> Iterator[int]:
    """Yield the bytes of each tensor of all parameters and buffers as loaded."""
    yield from _base_sizes(items, *_as_loaded(case))
    for counts, width, copies in _beside_base(case, items):
        for count in counts:
            yield from (count * width,) * copies


def _as_loaded(case: Case) -> tuple[int, str | None, bool]:
    """Return the bytes of an element that is not quantized, and how the others are."""
    width = 4 if prepared(case) else WIDTHS[case.dtype]
    return width, case.quantization, case.double_quantization


def _beside_base(case: Case, items: Inventory) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Yield elements of tensors, bytes of one, and how many of each tensor are made in a row."""
    yield items.adapters, 4, 1
    yield items.buffers_bytes, 1, 1
    yield items.cast_buffers, WIDTHS[case.dtype], 1
    yield items.frozen, 4, 1
    if items.table:
        yield (items.table,), _table_width(case, items, loaded=not case.training), 1
    if stack_of(case).rotary_caches:
        yield items.rotary_caches, WIDTHS[case.dtype], 2


@lru_cache(maxsize=64)
def _base_weights(
    items: Inventory, width: int, quantization: str | None, double_quantization: bool
) -> Held:
    return held(_base_sizes(items, width, quantization, double_quantization), 1)


@lru_cache(maxsize=64)
def _base_sizes(
    items: Inventory, width: int, quantization: str | None, double_quantization: bool
) -> tuple[int, ...]:
    """Quantized linears block by block; the rest in `width` bytes: as loaded, fp32 if prepared."""
    if quantization is None:
        return tuple(count * width for count in elements(items, width))
    rest = Counter(elements(items, width))
    sizes: list[int] = []
    for linear in items.quantizable:
        rest[linear.weight_count * (4 // width if linear.fp32 else 1)] -= 1
        sizes += quantized_blocks(linear, quantization, double_quantization)
    # The embeddings are the first.
    others = [count * width for count in rest.elements()]
    return (*others[:1], *sizes, *others[1:])


def trainable(case: Case, items: Inventory) -> tuple[tuple[int, ...], int]:
    """Return the tensors that train, and the bytes of an element of theirs."""
    if case.method == "lora":
        return _without(items.adapters, idle(case, items)), 4
    width = WIDTHS[case.dtype]
    return _without(elements(items, width), idle(case, items)), width


def idle(case: Case, items: Inventory) -> tuple[int, ...]:
    """Return the tensors that may train, but never get a gradient."""
    if case.method == "full":
        return items.idle
    bypassed = () if case.quantization is not None else items.bypassed
    return (*items.idle_adapters, *bypassed)


@lru_cache(maxsize=64)
def _without(counts: tuple[int, ...], idle: tuple[int, ...]) -> tuple[int, ...]:
    """Leave tensors out, each by its elements."""
    if not idle:
        return counts
    left = Counter(idle)
    kept = []
    for count in counts:
        if left[count] > 0:
            left[count] -= 1
        else:
            kept.append(count)
    return tuple(kept)
