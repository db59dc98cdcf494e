"""What a model holds before and between steps: parameters, buffers, gradients, states.

Every tensor is a block of its own in the allocator, so sizes are summed tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from estimator.allocator import expected_block
from estimator.architecture.context import WIDTHS
from estimator.case import Case, Lora
from estimator.spec import Layer, ModelSpec


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


def held(counts: Counter[int], width: int) -> Held:
    """Return the bytes of tensors given as {elements: how many}."""
    requested = sum(count * width * times for count, times in counts.items())
    allocated = sum(expected_block(count * width) * times for count, times in counts.items())
    return Held(requested, allocated)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Parameter tensors as {elements: how many}: the base's, the adapters', and what trains."""

    base: Counter[int]
    adapters: Counter[int]
    buffers_bytes: Counter[int]

    @property
    def base_count(self) -> int:
        """Parameters of the base."""
        return sum(count * times for count, times in self.base.items())

    @property
    def adapter_count(self) -> int:
        """Parameters of the adapters."""
        return sum(count * times for count, times in self.adapters.items())


def inventory(spec: ModelSpec, lora: Lora | None) -> Inventory:
    """Count a model's tensors."""
    adapters: Counter[int] = Counter()
    if lora is not None:
        for layer, times in Counter(spec.layers).items():
            for count in adapter_tensors(layer, lora):
                adapters[count] += times
    buffers: Counter[int] = Counter()
    if spec.rope_tables:
        # inv_freq and original_inv_freq, fp32, half a head each.
        buffers[4 * (spec.head_dim // 2)] += spec.rope_tables
    if spec.embedding_scaled:
        buffers[4] += 1
    return Inventory(Counter(spec.parameter_counts()), adapters, buffers)


def adapter_tensors(layer: Layer, lora: Lora) -> Iterator[int]:
    """Yield the elements of each adapter matrix of a layer: A [r, in] and B [out, r]."""
    for linear in layer.linears:
        if lora.target_modules == "all-linear" or linear.name in lora.target_modules:
            yield lora.r * linear.inputs
            yield linear.outputs * lora.r


def weights(case: Case, items: Inventory) -> Held:
    """Return the bytes of all parameters and buffers as loaded."""
    buffers = Held(
        sum(size * times for size, times in items.buffers_bytes.items()),
        sum(expected_block(size) * times for size, times in items.buffers_bytes.items()),
    )
    return held(items.base, WIDTHS[case.dtype]) + held(items.adapters, 4) + buffers


def trainable(case: Case, items: Inventory) -> tuple[Counter[int], int]:
    """Return the tensors that train, and the bytes of an element of theirs."""
    if case.method == "lora":
        return items.adapters, 4
    return items.base, WIDTHS[case.dtype]
