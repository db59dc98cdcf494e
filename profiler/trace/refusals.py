"""Turns a failure of a model's own code into one sentence for the user.

Some classes of transformers fail with some configurations, on every device; others take shapes from
values that meta tensors do not have. Neither is a bug here, and neither deserves a traceback.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path

from estimator.case import Case
from estimator.errors import GpumemError, UnsupportedError

_OURS = str(Path(__file__).parents[1])


@contextlib.contextmanager
def refused(case: Case, guesses: Collection[str]) -> Iterator[None]:
    """Run a model's code; what it raises becomes an UnsupportedError, what we raise does not.

    Args:
        guesses: values that were made up for the model's code so far: its failure may be theirs.
    """
    try:
        yield
    except GpumemError:
        raise
    except Exception as error:
        if _raised_here(error):
            raise
        raise UnsupportedError(_sentence(case, error, bool(guesses))) from error


def _raised_here(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS)


def _sentence(case: Case, error: Exception, guessed: bool) -> str:
    import transformers

    if guessed or isinstance(error, NotImplementedError):
        return (
            f"{case.model_name} cannot be traced: shapes in its code depend on values that only "
            f"real tensors have ({_line(error)}); measure it on a GPU with `gpumem profile`"
        )
    adapters = ", its adapters' target_modules" if case.lora is not None else ""
    return (
        f"{case.model_name} cannot be traced: its code fails with transformers "
        f"{transformers.__version__} ({type(error).__name__}: {_line(error)}); change its "
        f"configuration{adapters} or the version of transformers"
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 160 else text[:159] + "…"
