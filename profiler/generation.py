"""An inference case: the model's own `generate`, greedily, to its last new token.

transformers plays the loop, on CUDA tensors for a measurement and on meta tensors for a trace; an
observer is told where prefill ends, and is handed the cache whenever a forward pass has filled it.
There is no end-of-sequence token, so that a run has as many steps as its case says, and nothing is
compiled.

Source: GenerationMixin.generate and _sample (transformers 5.17).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.loops import Observer, accepted_names, autocast_dtype, run_forward

CACHE_NAMES = ("past_key_values", "cache_params", "state", "mems")
"""What models call that which they carry from step to step."""

_UPDATE = "_update_model_kwargs_for_generation"
_UNFINISHED = "_has_unfinished_sequences"


def generate(
    model: Any,
    batch: dict[str, Any],
    case: Case,
    observer: Observer,
    on_cache: Callable[[Any], None],
) -> Any:
    """Let the model generate `max_new_tokens` tokens; return their ids, [batch, all tokens].

    Args:
        batch: what `profiler.loops.make_batch` returned; the caller keeps it, as a user would.
        observer: hears `step(0)`, then the phases `prefill` and, with the second token, `decode`.
        on_cache: is handed the cache after each forward pass.

    Raises:
        UnsupportedError: for caches that generate cannot fill.
    """
    import transformers

    arguments = _cache_arguments(case, model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Whatever a checkpoint asks for: sampling, penalties, an end-of-sequence token.
    base.generation_config = model.generation_config = transformers.GenerationConfig()
    if not accepted_names(model) & {None, "attention_mask"}:
        batch = {"input_ids": batch["input_ids"]}
    observer.step(0)
    observer.phase("prefill")
    with _listening(base, observer, on_cache), _autocast(base, case):
        return model.generate(
            **batch,
            max_new_tokens=case.max_new_tokens,
            do_sample=False,
            disable_compile=True,
            **arguments,
        )


@contextlib.contextmanager
def replaced(model: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Give a model other methods than its class has, while active."""
    before = {name: vars(model)[name] for name in methods if name in vars(model)}
    for name, method in methods.items():
        setattr(model, name, method)
    try:
        yield
    finally:
        for name in methods:
            if name in before:
                setattr(model, name, before[name])
            else:
                delattr(model, name)


def carried_by(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a model carries from step to step, by its name among a forward's arguments."""
    return {name: arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None}


def _cache_arguments(case: Case, model: Any) -> dict[str, Any]:
    """Return how generate is asked for a case's cache.

    Raises:
        UnsupportedError: it makes no such cache.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if case.cache == "paged":
        raise UnsupportedError(
            f"cache {case.cache!r} cannot be traced or measured yet; use dynamic, static or "
            "quantized (gpumem estimate has a formula for it)"
        )
    if case.cache == "dynamic":
        return {}
    if not base._supports_default_dynamic_cache():
        raise UnsupportedError(
            f"{case.model_name} keeps a state of its own: cache {case.cache!r} does not apply to "
            "it; use dynamic"
        )
    if case.cache == "quantized":
        try:
            import optimum.quanto  # noqa: F401
        except ImportError:
            raise UnsupportedError(
                "a quantized cache needs optimum-quanto: pip install optimum-quanto; "
                "gpumem estimate answers without it"
            ) from None
    return {"cache_implementation": case.cache}


def _listening(base: Any, observer: Observer, on_cache: Callable[[Any], None]) -> Any:
    """Tell where generate's phases begin and what is in its cache, without changing either."""
    update, unfinished = getattr(base, _UPDATE), getattr(base, _UNFINISHED)
    asked = 0

    @functools.wraps(update)
    def updated(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        result = update(outputs, *args, **kwargs)
        for cache in carried_by(result).values():
            on_cache(cache)
        return result

    def is_unfinished(*args: Any, **kwargs: Any) -> bool:
        # Asked before each token: the first one's forward pass, the prefill, was before that.
        nonlocal asked
        asked += 1
        goes_on: bool = unfinished(*args, **kwargs)
        if goes_on and asked == 2:
            observer.phase("decode")
        return goes_on

    methods: dict[str, Callable[..., Any]] = {_UPDATE: updated, _UNFINISHED: is_unfinished}
    return replaced(base, **methods)


def _autocast(base: Any, case: Case) -> Any:
    """Run the forward under autocast, where the case says so, as accelerate prepares a model."""
    if autocast_dtype(case) is None:
        return contextlib.nullcontext()
    forward = base.forward

    @functools.wraps(forward)
    def prepared(**inputs: Any) -> Any:
        return run_forward(forward, case, base.device, inputs)

    return replaced(base, forward=prepared)
