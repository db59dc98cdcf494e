"""Formulas of Adafactor: a row's and a column's mean of squares instead of a state an element.

Source: transformers/optimization.py (`Adafactor.step`), as Trainer sets it up: no first moment, no
weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from estimator.allocator import expected_block
from estimator.architecture.inventory import Held
from estimator.architecture.stretches import distinct_layers
from estimator.spec import Linear, ModelSpec, Moe

Sides = Mapping[int, tuple[int, int]]
"""By the elements of a matrix: those of a mean over its rows, and of one over its columns."""


def base_sides(spec: ModelSpec) -> Sides:
    """Return the sides of a model's matrices; tensors of other sizes are vectors."""
    sides = {spec.head.weight_count: (spec.vocab_size, spec.embedding_size)}
    sides[spec.position_rows * spec.summed_size] = (spec.position_rows, spec.summed_size)
    if spec.token_tables is not None:
        rows, features = spec.token_tables.rows, spec.token_tables.features
        sides[rows * features] = (rows, features)
    for linear in _linears(spec):
        sides[linear.weight_count] = (linear.outputs, linear.inputs)
    for mlp in {layer.mlp for layer in distinct_layers(spec)}:
        if isinstance(mlp, Moe):
            E = mlp.experts
            sides[mlp.stacked("router")] = (E, mlp.hidden)
            sides[mlp.stacked("gate_up")] = (E * mlp.up_features, E * mlp.hidden)
            sides[mlp.stacked("down")] = (E * mlp.hidden, E * mlp.width)
    return sides


def adapter_sides(spec: ModelSpec, r: int) -> Sides:
    """Return the sides of a model's adapters: A [r, in] and B [out, r]."""
    sides: dict[int, tuple[int, int]] = {}
    for linear in _linears(spec):
        sides[r * linear.inputs] = (r, linear.inputs)
        sides[r * linear.outputs] = (linear.outputs, r)
    for mlp in {layer.mlp for layer in distinct_layers(spec)}:
        if isinstance(mlp, Moe):
            for name in ("router", "gate_up", "down"):
                rank = r if name == "router" else mlp.experts * r * (1 + (name == "gate_up"))
                for count in mlp.adapter_counts(name, r):
                    sides[count] = (rank, count // rank)
    return sides


def adafactor_state_sizes(tensors: Sequence[int], sides: Sides) -> list[int]:
    """Return the bytes of the states: fp32 means of a matrix's rows and columns, and a scalar a
    tensor."""
    return [4 * size for count in tensors for size in (*sides.get(count, (count,)), 1)]


def adafactor_temporary(tensors: Sequence[int], sides: Sides, width: int) -> Held:
    """Return what is alive at the highest instant of a step, which goes tensor by tensor.

    Squares and their sum with epsilon, while the update of the tensor before is still named; in
    half precision fp32 copies of the parameter and of its gradient, too. Tensors without weight
    decay, which are vectors, come last.
    """
    copies = 2 if width == 4 else 4
    best = Held()
    before = Held()
    for count in (*_matrices(tensors, sides), *_vectors(tensors, sides)):
        one = Held(4 * count, expected_block(4 * count))
        now = before
        for _ in range(copies):
            now += one
        if now.allocated_bytes > best.allocated_bytes:
            best = now
        before = one
    return best


def _matrices(tensors: Sequence[int], sides: Sides) -> Iterator[int]:
    return (count for count in tensors if count in sides)


def _vectors(tensors: Sequence[int], sides: Sides) -> Iterator[int]:
    return (count for count in tensors if count not in sides)


def _linears(spec: ModelSpec) -> Iterator[Linear]:
    yield spec.head
    yield from spec.outer_linears
    for layer in distinct_layers(spec):
        yield from layer.linears
