"""generate on meta tensors: which of its decode steps are played, and what lies between them.

Meta tensors do not tell generate when it is done, and most of its steps are like the ones before:
the first is played, and the last two. What those in between would add to the cache, the ids, the
mask and the positions is added at once, before the next step reads them.
"""

from __future__ import annotations

import functools
from typing import Any

from estimator.architecture.quantized_cache import RESIDUAL
from estimator.case import Case
from profiler import tensors
from profiler.generation import carried_by, replaced
from profiler.trace.cache_growth import grow, stride

_BY_TOKEN = ("attention_mask", "position_ids", "token_type_ids")
"""What generate carries along beside the ids that has an entry a token, in its last dimension."""


def played_steps(case: Case) -> list[int]:
    """Return which decode steps are really played, from 0; the last is the largest.

    A quantized cache also has one that quantizes its whole past anew, the last of which counts.
    """
    assert case.max_new_tokens is not None
    steps = case.max_new_tokens - 1
    played = {0, steps - 2, steps - 1}
    if case.cache == "quantized":
        played.add(steps // RESIDUAL * RESIDUAL - 1)
    return sorted(index for index in played if 0 <= index < steps)


def shortened(model: Any, case: Case) -> Any:
    """Let a model's generate play those steps only, and find all as if it had played each.

    Raises:
        UnsupportedError: when it runs, for a cache whose growth is not known.
    """
    prepare = model.prepare_inputs_for_generation
    # Before the first of them comes the prefill, of which nothing is left out.
    starts = [-1, *played_steps(case)]
    prepared = finished = 0

    @functools.wraps(prepare)
    def prepare_inputs(input_ids: Any, *args: Any, **arguments: Any) -> Any:
        nonlocal prepared
        if prepared:
            missing = starts[prepared] - starts[prepared - 1] - 1
            if missing:
                _lengthen(input_ids, arguments, missing)
        prepared += 1
        return prepare(input_ids, *args, **arguments)

    def is_unfinished(*_: Any, **__: Any) -> bool:
        nonlocal finished
        finished += 1
        return finished <= len(starts)

    return replaced(
        model,
        prepare_inputs_for_generation=prepare_inputs,
        _has_unfinished_sequences=is_unfinished,
    )


def _lengthen(input_ids: Any, arguments: dict[str, Any], count: int) -> None:
    """Add `count` tokens to all that generate carries from step to step, in place.

    The cache in strides after which its largest tensor has outgrown its segment and takes new ones.
    """
    carried = carried_by(arguments)
    apart = stride(tensors.cache_tensors(list(carried.values())))
    for grown in range(0, count, apart):
        grow(carried, min(apart, count - grown))
    for tensor in (input_ids, *(arguments.get(name) for name in _BY_TOKEN)):
        if tensor is not None:
            # generate itself keeps the tensor, not the arguments: it gets another storage.
            tensor.data = tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] + count))
