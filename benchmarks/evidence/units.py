"""What a printed figure means in bytes, and how finely it was printed."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

UNITS = {
    "B": 1,
    "MiB": 2**20,
    "GiB": 2**30,
    "MB (1e6)": 10**6,
    "GB (1e9)": 10**9,
    "MB (deltas match MiB)": 2**20,
    "GB (fits GiB)": 2**30,
}
"""Units whose meaning is known; the others (`GB`, `MB`, `GB (unspecified)`) mean either of two."""


def read_figure(value: str, unit: str) -> tuple[int, int] | None:
    """Return (bytes, half a unit of the last printed digit), None where the unit is not known.

    >>> read_figure("1.17", "GiB")
    (1256277934, 5368709)
    """
    scale = UNITS.get(unit)
    if scale is None:
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    half_unit = Decimal(scale).scaleb(exponent) / 2
    return round(number * scale), 0 if unit == "B" else round(half_unit)
