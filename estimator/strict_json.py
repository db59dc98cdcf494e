"""JSON as we accept it: one value, bounded in size and depth, without NaN or Infinity."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from estimator.errors import GpumemError, show_value

MAX_JSON_BYTES = 8 * 2**20
"""Configurations are a few KiB; what is larger than this is some other file."""

MAX_DEPTH = 64
"""Configurations nest a few levels deep; code that copies values recurses once or twice a level."""


def parse_json(
    data: bytes | str, what: str, error: type[GpumemError], most: int = MAX_JSON_BYTES
) -> Any:
    """Parse one JSON text; `what` names it in the error sentence (`cases line 3`).

    Raises:
        error: when it is empty, above `most` bytes, not UTF-8, not JSON, nested too deeply,
            or holds NaN, Infinity or a number that no float can hold.
    """

    def refuse(constant: str) -> NoReturn:
        raise error(f"{what} contains {constant[:20]}, which is not a JSON number")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    if len(data) > most:
        raise error(f"{what} is larger than {most // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        if not text.strip():
            raise error(f"{what} is empty")
        value = json.loads(text, parse_constant=refuse, parse_float=finite)
    except UnicodeDecodeError:
        raise error(f"{what} is not JSON: it is not UTF-8 text") from None
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno} column {problem.colno}"
        raise error(f"{what} is not JSON: {problem.msg} ({place})") from None
    except RecursionError:
        raise error(f"{what} is nested too deeply") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise error(f"{what} contains a number with thousands of digits") from None
    _check_depth(value, what, error)
    return value


def check_json(value: Any, what: str, error: type[GpumemError]) -> None:
    """Check that a Python object is what `parse_json` could have returned.

    Raises:
        error: when it holds NaN or Infinity, something that JSON has no word for, or nests too
            deeply.
    """
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        raise error(f"{what} is nested too deeply") from None
    except (TypeError, ValueError) as problem:
        raise error(f"{what} is not valid JSON: {show_value(str(problem), 100)}") from None
    _check_depth(value, what, error)


def _check_depth(value: Any, what: str, error: type[GpumemError]) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item for item in level if isinstance(item, (dict, list, tuple))]
        if not inner:
            return
        level = [
            value for item in inner for value in (item.values() if isinstance(item, dict) else item)
        ]
    raise error(f"{what} is nested too deeply")
