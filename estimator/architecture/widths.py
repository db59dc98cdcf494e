"""Bytes of an element, which stand for its type: what casts and promotions follow.

A run knows one half type, of 2 bytes, and fp32. Only where autocast computes in another half type
than the weights' are there two; that other one is `OTHER_HALF`.
"""

from __future__ import annotations


class _OtherHalf(int):
    """Two bytes that equal no others: casts between the two half types are made."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is self

    def __ne__(self, other: object) -> bool:
        return other is not self

    __hash__ = int.__hash__


HALF = 2
"""Bytes of an element of the half type that weights have; where they have none, autocast's."""

OTHER_HALF = _OtherHalf(2)
"""Bytes of an element of autocast's half type, where the weights' is the other one."""


def promoted(first: int, second: int) -> int:
    """Return the bytes of an element of what an operation makes of two types: bf16 and fp16 meet
    in fp32.

    Source: c10/core/ScalarType.cpp, `promoteTypes`.
    """
    if first == second:
        return first
    return 4 if first + second == 2 * HALF else max(first, second)
