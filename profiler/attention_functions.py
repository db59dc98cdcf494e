"""Wraps the attention function that transformers' layers look up, while a run lasts.

Layers ask `AttentionInterface.get_interface` for their core attention at each call, eager ones
too, so one replaced method reaches all of them and nothing of a model is changed.

Source: transformers/modeling_utils.py, `AttentionInterface.get_interface`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from estimator.case import Case
from estimator.errors import UnsupportedError

AttentionFunction = Callable[..., tuple[Any, Any]]


@contextlib.contextmanager
def attention_of(case: Case) -> Iterator[None]:
    """Make the core attention what a case asks for: as it is, recomputed in backward, or spread.

    Raises:
        UnsupportedError: at the end, where no layer has looked its attention up.
    """
    if case.parallelism is not None:
        from profiler.ulysses import spread

        with wrapped_attention(lambda attend: spread(attend, case)) as found:
            yield
        if not found:
            raise UnsupportedError(
                f"the layers of {case.model_name} have no attention function of their own, which "
                "sequence parallelism wraps: use parallelism null"
            )
        return
    if not case.recomputes_attention:
        yield
        return
    with wrapped_attention(_checkpointed) as found:
        yield
    if not found:
        raise UnsupportedError(
            f"the layers of {case.model_name} have no attention function of their own that could "
            "be recomputed alone: use recompute_granularity full"
        )


@contextlib.contextmanager
def wrapped_attention(wrap: Callable[[AttentionFunction], AttentionFunction]) -> Iterator[set[str]]:
    """Hand every layer `wrap(function)` instead of its attention function.

    Yields:
        the names under which functions were looked up, filled as the run goes.
    """
    from transformers.modeling_utils import AttentionInterface

    original = AttentionInterface.get_interface
    found: set[str] = set()

    def get_interface(self: Any, name: str, default: AttentionFunction) -> AttentionFunction:
        found.add(name)
        return wrap(original(self, name, default))

    AttentionInterface.get_interface = get_interface
    try:
        yield found
    finally:
        AttentionInterface.get_interface = original


def _checkpointed(attend: AttentionFunction) -> AttentionFunction:
    """Keep the inputs only, and run the attention again in backward."""
    from torch.utils.checkpoint import checkpoint

    def recomputed(
        module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any
    ) -> Any:
        return checkpoint(attend, module, query, key, value, *rest, use_reentrant=False, **options)

    return recomputed
