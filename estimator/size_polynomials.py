"""Sizes of tensors as polynomials in batch size B and sequence length S, found from a few points.

A tensor's size is a product of its dimensions, and a dimension is a constant, B, S, S plus a
constant (a cache), or S rounded up (rows that a kernel pads). So a size is a sum of very few terms
with whole coefficients, and a few generic points decide which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

PADDINGS = (16, 32, 64, 128)
"""Multiples to which kernels round S: masks 16, logsumexp 32, chunks 64, flash's rows 128."""


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient * B**batch * S**length`, times `S + shift` rounded up to `multiple` if not 0."""

    coefficient: int
    batch: int = 0
    length: int = 0
    multiple: int = 0
    shift: int = 0

    def value(self, batch: Any, length: Any) -> Any:
        """Return the term at ints, or at numpy arrays of int64."""
        result = self.coefficient * batch**self.batch * length**self.length
        if self.multiple:
            result = result * (-(-(length + self.shift) // self.multiple) * self.multiple)
        return result


Polynomial = tuple[Term, ...]
"""A sum of terms."""

Point = tuple[int, int]
"""A batch size and a sequence length."""


def evaluate(polynomial: Polynomial, batch: Any, length: Any) -> Any:
    """Return a polynomial's value at ints, or at numpy arrays of one shape."""
    result = 0 * batch
    for term in polynomial:
        result = result + term.value(batch, length)
    return result


def find_polynomial(
    values: Sequence[int], points: Sequence[Point], shifts: Sequence[int] = (0,)
) -> Polynomial | None:
    """Return the simplest polynomial of at most two terms that meets every value exactly.

    Args:
        values: sizes in bytes, one for each point.
        points: at least three, of different lengths; two terms leave one of them to check.
        shifts: constants that may be added to S before it is rounded up.

    Returns:
        None where there is none with whole coefficients.
    """
    if len(points) < 3:
        raise ValueError("a size needs three points: two to find it, one to check it")
    shapes = list(_shapes(points, shifts))
    for shape in shapes:
        found = _one_term(shape, values, points)
        if found is not None:
            return found
    for index, first in enumerate(shapes):
        for second in shapes[index + 1 :]:
            found = _two_terms(first, second, values, points)
            if found is not None:
                return found
    return None


def _shapes(points: Sequence[Point], shifts: Sequence[int]) -> Iterator[Term]:
    """Terms with coefficient 1, the simplest first; where B is the same everywhere, without B."""
    powers = (0,) if len({batch for batch, _ in points}) == 1 else (0, 1)
    for length in (0, 1, 2):
        for batch in powers:
            yield Term(1, batch, length)
    for multiple in PADDINGS:
        for shift in shifts:
            for length in (0, 1):
                for batch in powers:
                    yield Term(1, batch, length, multiple, shift)


def _one_term(shape: Term, values: Sequence[int], points: Sequence[Point]) -> Polynomial | None:
    coefficient, rest = divmod(values[0], shape.value(*points[0]))
    if rest:
        return None
    found = (_scaled(shape, coefficient),)
    return found if _meets(found, values, points) else None


def _two_terms(
    first: Term, second: Term, values: Sequence[int], points: Sequence[Point]
) -> Polynomial | None:
    (a, b), (c, d) = ((first.value(*p), second.value(*p)) for p in points[:2])
    determinant = a * d - b * c
    if determinant == 0:
        return None
    x = Fraction(values[0] * d - b * values[1], determinant)
    y = Fraction(a * values[1] - c * values[0], determinant)
    if x.denominator != 1 or y.denominator != 1:
        return None
    found = (_scaled(first, int(x)), _scaled(second, int(y)))
    return found if _meets(found, values, points) else None


def _scaled(shape: Term, coefficient: int) -> Term:
    return Term(coefficient, shape.batch, shape.length, shape.multiple, shape.shift)


def _meets(found: Polynomial, values: Sequence[int], points: Sequence[Point]) -> bool:
    return all(
        evaluate(found, *point) == value for value, point in zip(values, points, strict=True)
    )
