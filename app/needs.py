"""Checks that a verb's libraries are here, before it starts."""

from __future__ import annotations

from importlib.util import find_spec

from estimator.errors import EnvironmentUnavailable


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
