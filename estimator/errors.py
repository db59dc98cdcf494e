"""Every error a user may see, and the exit code that goes with it.

The command line catches `GpumemError` in one place and prints its one sentence;
anything else that escapes is a bug and shows a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class GpumemError(Exception):
    """An error with one clear sentence for the user and a process exit code."""

    exit_code = 2


class CaseError(GpumemError):
    """A case has an unknown field, a wrong value or an impossible combination.

    Attributes:
        field: the offending field, dotted for nested ones (`lora.r`), or None.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ModelError(GpumemError):
    """A model cannot be found, or its configuration cannot be read."""


class UnsupportedError(GpumemError):
    """The question is valid, but this source cannot answer it; the message names the way out."""


class RecordError(GpumemError):
    """A record or a results folder cannot be read or written."""


class EnvironmentUnavailable(GpumemError):
    """What the verb needs is not on this machine (no CUDA GPU, no torch)."""

    exit_code = 4


class WorkerTimeout(GpumemError):
    """A worker used up its time limit."""

    exit_code = 124


def show_value(value: Any, limit: int = 60) -> str:
    """Return `repr(value)`, cut to `limit` characters, for use in an error sentence."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def show_choices(choices: Iterable[Any]) -> str:
    """Return choices as `a, b or c`, with None written as null."""
    names = ["null" if choice is None else str(choice) for choice in choices]
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " or " + names[-1]
