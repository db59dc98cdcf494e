"""Bytes for people: GB = 10**9 bytes, GiB = 2**30 bytes, always labelled, never mixed.

Inside the project a size is an `int` number of bytes in a name that ends in `_bytes`.
"""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30
GB = 10**9


def ceil_div(value: int, unit: int) -> int:
    """Return `value / unit` rounded up, for non-negative ints."""
    return -(-value // unit)


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least `value`."""
    return -(-value // unit) * unit


def format_gb(size_bytes: int) -> str:
    """Return a size as `12.34 GB` (10**9 bytes)."""
    return f"{size_bytes / GB:.2f} GB"


def format_gib(size_bytes: int) -> str:
    """Return a size as `12.34 GiB` (2**30 bytes)."""
    return f"{size_bytes / GIB:.2f} GiB"


def format_both(size_bytes: int) -> str:
    """Return a size in both units: `13.25 GB (12.34 GiB)`."""
    return f"{format_gb(size_bytes)} ({format_gib(size_bytes)})"


def format_error(relative: float) -> str:
    """Return a signed relative error as a percentage: `+1.25 %`."""
    return f"{relative * 100:+.2f} %"


def relative_error(predicted_bytes: int, measured_bytes: int) -> float:
    """Return (predicted - measured) / measured. Plus means over-estimate.

    Raises:
        ZeroDivisionError: when `measured_bytes` is 0.
    """
    return (predicted_bytes - measured_bytes) / measured_bytes
