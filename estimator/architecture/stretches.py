"""Equal layers of a model: their numbers, and how many stand in a row."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import lru_cache

from estimator.spec import Layer, ModelSpec


@lru_cache(maxsize=64)
def layer_numbers(spec: ModelSpec) -> tuple[int, ...]:
    """Return a number for each layer, the same for equal ones."""
    numbers = {layer: number for number, layer in enumerate(distinct_layers(spec))}
    return tuple(numbers[layer] for layer in spec.layers)


@lru_cache(maxsize=64)
def distinct_layers(spec: ModelSpec) -> tuple[Layer, ...]:
    """Return one layer of each kind, by their numbers."""
    return tuple(dict.fromkeys(spec.layers))


def stretches(items: Sequence[Hashable], starts: Collection[int] = ()) -> Iterator[range]:
    """Yield the places of equal items in a row; a stretch begins anew at each of `starts`."""
    first = 0
    for index in range(1, len(items) + 1):
        if index == len(items) or items[index] != items[first] or index in starts:
            yield range(first, index)
            first = index
