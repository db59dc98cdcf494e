"""generate's loop: prefill, then one greedy token a step, with whatever the model carries along.

Most models carry a `Cache` under `past_key_values`; Mamba's name it `cache_params`; a few older
ones (rwkv, xlnet) make a state of their own, which comes back in their outputs and goes in again.

Source: GenerationMixin._sample, _prepare_cache_for_generation and
_update_model_kwargs_for_generation (transformers 5.17).
"""

from __future__ import annotations

import contextlib
from typing import Any

from estimator.architecture.context import static_length
from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.loops import Observer, accepted_names, run_forward

_PREPARE_INPUTS = ("cpmant", "openai-gpt", "xlm")
"""Model types that do not take the newest token alone: only they know their inputs."""

_PROMPT_MASK = ("mamba", "mamba2", "falcon_mamba")
"""Model types whose `prepare_inputs_for_generation` hands the mask to the prefill only."""

CACHE_NAMES = ("past_key_values", "cache_params", "state", "mems")
"""What models call that which they carry from step to step."""


def generate(model: Any, batch: dict[str, Any], case: Case, observer: Observer) -> Any:
    """Prefill the prompt, then decode greedily `max_new_tokens` tokens with the cache.

    The last token's logits only, copied to fp32, argmax, one token appended to the ids: as
    `generate` does. Returns the cache, so that its tensors can be counted.
    """
    import torch

    assert case.max_new_tokens is not None
    generation = Generation(model, case, batch["input_ids"], batch["attention_mask"])
    observer.step(0)
    with torch.no_grad():
        for index in range(case.max_new_tokens):
            observer.phase("prefill" if index == 0 else "decode")
            generation.step()
    return generation.cache


class Generation:
    """One generate: the ids so far, their mask, and the cache.

    Args:
        input_ids: [batch, prompt tokens], int64.
        mask: [batch, prompt tokens], int64 ones.

    Raises:
        UnsupportedError: for caches that this loop cannot fill.
    """

    def __init__(self, model: Any, case: Case, input_ids: Any, mask: Any) -> None:
        self._model, self._case = model, case
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._prefilled = False
        self._own_state = not self._base._supports_default_dynamic_cache()
        self.input_ids, self.mask = input_ids, mask
        self.carried: dict[str, Any] = {}
        if self._own_state:
            if case.cache != "dynamic":
                raise UnsupportedError(
                    f"{case.model_name} keeps a state of its own: cache {case.cache!r} does not "
                    "apply to it; use dynamic"
                )
        else:
            is_mamba = "mamba" in type(self._base).__name__.lower()
            name = "cache_params" if is_mamba else "past_key_values"
            self.carried[name] = make_cache(case, model)

    @property
    def cache(self) -> Any:
        """What the model carries from step to step; None before a model made its own."""
        return next(iter(self.carried.values()), None)

    def step(self) -> None:
        """Run one iteration: the whole prompt at first, the newest token later."""
        import torch

        own = self._own_state or self._base.config.model_type in _PREPARE_INPUTS
        inputs = self._own_inputs() if own else self._inputs()
        with self._decoding():
            outputs = run_forward(self._model, self._case, self.input_ids.device, inputs)
        del inputs
        if self._own_state:
            self.carried = self._base._update_model_kwargs_for_generation(outputs, {})
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        del outputs
        token = torch.argmax(logits, dim=-1)
        self.input_ids = torch.cat([self.input_ids, token[:, None]], dim=-1)
        self.mask = torch.cat([self.mask, self.mask.new_ones((self.mask.shape[0], 1))], dim=-1)
        self._prefilled = True

    def _inputs(self) -> dict[str, Any]:
        import torch

        length = self.input_ids.shape[1]
        start = length - 1 if self._prefilled else 0
        accepted = accepted_names(self._model)
        extra: dict[str, Any] = {}
        if "position_ids" in accepted:
            positions = torch.arange(start, length, device=self.input_ids.device)
            extra["position_ids"] = positions.unsqueeze(0)
        if "logits_to_keep" in accepted:
            extra["logits_to_keep"] = 1
        unmasked = self._base.config.model_type in _PROMPT_MASK
        newest = self.input_ids[:, start:].clone(memory_format=torch.contiguous_format)
        return {
            "input_ids": newest,
            "attention_mask": None if self._prefilled and unmasked else self.mask,
            **self.carried,
            "use_cache": True,
            **extra,
        }

    def _own_inputs(self) -> dict[str, Any]:
        """Ask the model itself, which alone knows how its state goes in again."""
        inputs: dict[str, Any] = self._base.prepare_inputs_for_generation(
            self.input_ids,
            next_sequence_length=1 if self._prefilled else None,
            is_first_iteration=not self._prefilled,
            attention_mask=self.mask,
            use_cache=True,
            **self.carried,
        )
        return {**inputs, "return_dict": True}

    def _decoding(self) -> contextlib.AbstractContextManager[None]:
        """From the second token on, generate runs experts as one batched product."""
        switch = getattr(self._base, "_optimize_model_for_decode", None)
        if switch is None or not self._prefilled:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = switch()
        return context


def make_cache(case: Case, model: Any) -> Any:
    """Return the empty key/value cache of a case.

    Raises:
        UnsupportedError: for caches that this loop cannot fill.
    """
    import transformers

    if case.cache == "dynamic":
        return transformers.DynamicCache(config=model.config)
    if case.cache == "static":
        return transformers.StaticCache(config=model.config, max_cache_len=static_length(case))
    if case.cache == "quantized":
        try:
            import optimum.quanto  # noqa: F401
        except ImportError:
            raise UnsupportedError(
                "a quantized cache needs optimum-quanto: pip install optimum-quanto; "
                "gpumem estimate answers without it"
            ) from None
        return transformers.QuantizedCache("quanto", model.config)
    raise UnsupportedError(
        f"cache {case.cache!r} cannot be traced or measured yet; use dynamic, static or quantized "
        "(gpumem estimate has a formula for it)"
    )
