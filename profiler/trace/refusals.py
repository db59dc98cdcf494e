"""Turns a failure of a model's own code into one sentence for the user.

Some classes of transformers fail with some configurations, on every device; others ask for values
that meta tensors do not have. Neither is a bug here, and neither deserves a traceback.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from estimator.case import Case
from estimator.errors import GpumemError, UnsupportedError

_OURS = str(Path(__file__).parents[1])


@contextlib.contextmanager
def refused(case: Case) -> Iterator[None]:
    """Run a model's code; what it raises becomes an UnsupportedError, what we raise does not."""
    try:
        yield
    except GpumemError:
        raise
    except Exception as error:
        if _raised_here(error):
            raise
        raise UnsupportedError(_sentence(case, error)) from error


def _raised_here(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS)


def _sentence(case: Case, error: Exception) -> str:
    import transformers

    if isinstance(error, NotImplementedError):
        return (
            f"{case.model_name} cannot be traced: its code needs values that only real tensors "
            f"have ({_line(error)}); measure it on a GPU with `gpumem profile`"
        )
    return (
        f"{case.model_name} cannot be traced: its code in transformers {transformers.__version__} "
        f"fails ({type(error).__name__}: {_line(error)}); change its configuration, or the "
        "version of transformers"
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 160 else text[:159] + "…"
