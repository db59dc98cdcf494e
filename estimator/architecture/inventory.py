"""What a model holds before and between steps: parameters, buffers, gradients, states.

Every tensor is a block of its own in the allocator, so sizes are summed tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from estimator.allocator import (
    MIN_LARGE_BYTES,
    SMALL_BYTES,
    bytes_of_blocks,
    expected_block,
)
from estimator.architecture.context import WIDTHS, prepared, stack_of
from estimator.architecture.loading import Place, adapter_counts, module_order, put_in_order
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
    # Small blocks have no rests, and segments of their own.
    small = copies * sum(expected_block(size) for size in sizes if size <= SMALL_BYTES)
    large = (size for size in sizes if size > SMALL_BYTES for _ in range(copies))
    return Held(requested, small + bytes_of_blocks(large))


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
    places: tuple[Place, ...] = ()
    """Larger tensors in the order in which they are made."""

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
            adapters += adapter_counts(linear, lora)
    buffers: list[int] = []
    if spec.rope_tables:
        # inv_freq and original_inv_freq, fp32, half of what is rotated each.
        for features in spec.table_features:
            buffers += [4 * (features // 2)] * 2
    inner = (linear for layer in spec.layers for linear in layer.counted_linears)
    linears = tuple(linear for linear in (*inner, *spec.outer_linears) if linear.quantizable)
    bare = spec.final_norm is not None and not spec.final_norm.shapes
    if spec.tied and (bare or spec.stream_ends is not None):
        # What holds the model's last parameter is not quantized: the head, or the final norm, but
        # without either (OLMo 1B), or behind it (Gemma 3n), the last linear
        # (transformers/quantizers/base.py).
        linears = linears[:-1]
    buffers += spec.buffers
    caches: tuple[int, ...] = ()
    if spec.rope_tables and spec.max_positions:
        caches = (spec.max_positions * spec.rotary_dim,) * len(spec.layers)
    places = tuple(module_order(spec, lora))
    transform = spec.head_transform
    # Optimizers tell embeddings by their coming first.
    tables_first = [p for p in places if transform is None or p.linear is not transform.dense]
    return Inventory(
        _ordered(spec.parameter_counts(), tables_first, "parameter"),
        _ordered(adapters, places, "adapter"),
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
        places,
    )


def _ordered(counts: Iterable[int], places: Iterable[Place], kind: str) -> tuple[int, ...]:
    return put_in_order(counts, (place.count for place in places if place.kind == kind))


def _idle_adapters(spec: ModelSpec, lora: Lora | None) -> Iterator[int]:
    if lora is None:
        return
    for layer in spec.layers:
        for linear in (*layer.idle_linears, *layer.shadows):
            yield from adapter_counts(linear, lora)


def _bypassed(spec: ModelSpec, lora: Lora | None) -> Iterator[int]:
    if lora is None:
        return
    for layer in spec.layers:
        for linear in layer.linears:
            if linear.bypassed:
                yield from adapter_counts(linear, lora)


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
        yield from adapter_counts(linear, lora)


def position_table(case: Case, items: Inventory, loaded: bool) -> Held:
    """Return the bytes of a computed table of positions, as loaded or as the first forward pass
    leaves it: in the dtype of what it is added to."""
    return held((items.table,), _table_width(case, items, loaded))


def _table_width(case: Case, items: Inventory, loaded: bool) -> int:
    cast = 4 if loaded or prepared(case) else WIDTHS[case.dtype]
    return cast if items.table_cast else WIDTHS[case.dtype]


def weights(case: Case, items: Inventory, loaded: bool = False) -> Held:
    """Return the bytes of all parameters and buffers, once they have run or as `loaded`."""
    return _weights(*_as_kept(case, items, loaded))


def weight_sizes(case: Case, items: Inventory, loaded: bool = False) -> tuple[int, ...]:
    """Return the bytes of each tensor of all parameters and buffers, in the order of loading.

    Args:
        loaded: as loading leaves them; the first forward pass of some models casts a table of
            positions.
    """
    return _weight_sizes(*_as_kept(case, items, loaded))


_Kept = tuple[Inventory, int, int, str | None, bool, int, bool]
"""All that the weights' bytes depend on: the arguments of `_weight_sizes`."""


def _as_kept(case: Case, items: Inventory, loaded: bool) -> _Kept:
    return (
        items,
        4 if prepared(case) else WIDTHS[case.dtype],
        WIDTHS[case.dtype],
        case.quantization,
        case.double_quantization,
        _table_width(case, items, loaded or not case.training) if items.table else 0,
        stack_of(case).rotary_caches,
    )


@lru_cache(maxsize=64)
def _weights(*kept: *_Kept) -> Held:
    # Remembered by what it depends on: thousands of sizes take long to be compared.
    return held(_weight_sizes(*kept), 1)


@lru_cache(maxsize=64)
def _weight_sizes(
    items: Inventory,
    width: int,
    own_width: int,
    quantization: str | None,
    double_quantization: bool,
    table_width: int,
    rotary_caches: bool,
) -> tuple[int, ...]:
    """Quantized linears block by block; the rest in `width` bytes: as loaded, fp32 if prepared;
    `own_width` is always as loaded."""
    rest = Counter(elements(items, width))
    sizes: list[int] = []
    if quantization is not None:
        for linear in items.quantizable:
            rest[linear.weight_count * (4 // width if linear.fp32 else 1)] -= 1
            sizes += quantized_blocks(linear, quantization, double_quantization)
    sizes += [count * width for count in rest.elements()]
    sizes += [4 * count for count in (*items.adapters, *items.frozen)]
    sizes += items.buffers_bytes
    sizes += [own_width * count for count in items.cast_buffers]
    if rotary_caches:
        sizes += [own_width * count for count in items.rotary_caches for _ in range(2)]
    first = (table_width * items.table,) if items.table else ()
    wanted = _placed(items.places, width, quantization, double_quantization)
    return (*first, *put_in_order(sizes, wanted))


def _placed(
    places: Iterable[Place], width: int, quantization: str | None, double_quantization: bool
) -> Iterator[int]:
    for place in places:
        linear = place.linear
        if place.kind == "buffer":
            yield place.count
        elif place.kind == "adapter":
            yield 4 * place.count
        elif linear is not None and linear.quantizable and quantization is not None:
            yield from quantized_blocks(linear, quantization, double_quantization)
        else:
            yield place.count * (4 if linear is not None and linear.fp32 else width)


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
