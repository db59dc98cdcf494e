"""Checks before a verb starts what takes seconds: the model, the libraries, the GPU."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import EnvironmentUnavailable, UnsupportedError
from estimator.families import parse_spec


def check_model(case: Case) -> None:
    """Check that the model is known and, as far as its type is known, that its sizes can be.

    Raises:
        ModelError: saying what is wrong.
    """
    config = load_config(case.model)
    with suppress(UnsupportedError):
        parse_spec(config)


def need_torch(verb: str) -> None:
    """Check that torch and transformers are installed, without importing them.

    Raises:
        EnvironmentUnavailable: naming the extra that brings them.
    """
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise EnvironmentUnavailable(
            f"{verb} needs {' and '.join(missing)}, not installed here: "
            "pip install 'gpumem[profile]' (gpumem estimate works without)"
        )


def need_cuda() -> None:
    """Check that a CUDA GPU, and a torch that can use it, are here.

    Raises:
        EnvironmentUnavailable: saying what is missing.
    """
    from profiler.environment import cuda_problem

    problem = cuda_problem()
    if problem is not None:
        raise EnvironmentUnavailable(
            f"no CUDA GPU here: {problem}; use gpumem trace for a simulated run"
        )
