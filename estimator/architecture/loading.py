"""The order in which a model's tensors are made: that of its modules.

Tensors above 1 MiB share the allocator's segments, so that their order decides which of them keep
rests. How many there are is the inventory's to count; here they are only put in order.

Source: torch's `Module.modules`: a module's own parameters and buffers, then its children in the
order of their definition; peft's wrappers hold what they wrap, then A and B
(peft/tuners/lora/layer.py, `LoraLayer.__init__`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from estimator.architecture.stretches import distinct_layers, layer_numbers
from estimator.case import Lora
from estimator.spec import Layer, Linear, ModelSpec, Moe


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place among the others: a parameter (of a linear, where it is one's weight) or an
    adapter's matrix of `count` elements, or a buffer of `count` bytes."""

    kind: str
    count: int
    linear: Linear | None = None


def module_order(spec: ModelSpec, lora: Lora | None) -> Iterator[Place]:
    """Yield the places of a model's larger tensors; biases, norms and the like are left out."""
    # A model's own buffers stand before all that it holds, and a layer's before what that holds.
    each, others = divmod(len(spec.buffers), len(spec.layers))
    if others:
        for size in spec.buffers:
            yield Place("buffer", size)
    dense = None if spec.head_transform is None else spec.head_transform.dense
    if dense is not None and "head" in spec.defined_first:
        yield from _linear(dense, lora)
    yield from _before_layers(spec, lora)
    kinds = [tuple(_layer(kind, lora, spec.defined_first)) for kind in distinct_layers(spec)]
    for index, number in enumerate(layer_numbers(spec)):
        if not others:
            for size in spec.buffers[index * each : (index + 1) * each]:
                yield Place("buffer", size)
        yield from kinds[number]
    if spec.stream_ends is not None:
        for linear in (*spec.stream_ends.into, *spec.stream_ends.out_of):
            yield from _linear(linear, lora)
    if dense is not None and "head" not in spec.defined_first:
        yield from _linear(dense, lora)
    if not spec.tied:
        yield Place("parameter", spec.head.weight_count)


def _before_layers(spec: ModelSpec, lora: Lora | None) -> Iterator[Place]:
    yield Place("parameter", spec.vocab_size * spec.embedding_size)
    if spec.token_tables is not None:
        yield Place("parameter", spec.token_tables.rows * spec.token_tables.features)
        yield from _linear(spec.token_tables.projection, lora)
    if spec.position_rows:
        yield Place("parameter", spec.position_rows * spec.summed_size)
    for projection in (spec.project_out, spec.project_in):
        if projection is not None:
            yield from _linear(projection, lora)


def put_in_order(sizes: Iterable[int], places: Iterable[int]) -> tuple[int, ...]:
    """Return sizes in the order of their places, then those that have none."""
    left = Counter(sizes)
    ordered = []
    for size in places:
        if left[size] > 0:
            left[size] -= 1
            ordered.append(size)
    return (*ordered, *left.elements())


def adapter_counts(linear: Linear, lora: Lora) -> Iterator[int]:
    """Yield the elements of a linear's A [r, in], B [out, r], and DoRA's magnitudes [out]."""
    if not linear.adaptable:
        return
    if lora.target_modules == "all-linear" or linear.name in lora.target_modules:
        yield lora.r * linear.inputs
        yield linear.outputs * lora.r
        if lora.use_dora:
            yield linear.outputs


def _layer(layer: Layer, lora: Lora | None, first: tuple[str, ...]) -> Iterator[Place]:
    blocks = [block.linears for block in layer.blocks]
    if "output" in first:
        # The last of each is its output.
        blocks = [(linears[-1], *linears[:-1]) for linears in blocks]
    attention = [linear for linears in blocks for linear in linears]
    attention += layer.idle_linears
    own = layer.mlp.linears if layer.mlp is not None else ()
    behind = [linear for linear in layer.linears if linear not in (*attention, *own)]
    experts = list(_experts(layer.mlp, lora)) if isinstance(layer.mlp, Moe) else []
    if "mlp" not in first:
        for linear in attention:
            yield from _linear(linear, lora)
    yield from experts
    for linear in own:
        yield from _linear(linear, lora)
    if "mlp" in first:
        for linear in attention:
            yield from _linear(linear, lora)
    for linear in behind:
        yield from _linear(linear, lora)


def _experts(mixture: Moe, lora: Lora | None) -> Iterator[Place]:
    names = ("router", "gate_up", "down")
    for name in names[mixture.router_linear is not None :]:
        yield Place("parameter", mixture.stacked(name))
    adapted = () if lora is None else mixture.adapted(lora.target_modules)
    for name in adapted:
        if lora is not None:
            for count in mixture.adapter_counts(name, lora.r):
                yield Place("adapter", count)


def _linear(linear: Linear, lora: Lora | None) -> Iterator[Place]:
    yield Place("parameter", linear.weight_count, linear)
    if lora is not None:
        for count in adapter_counts(linear, lora):
            yield Place("adapter", count)
