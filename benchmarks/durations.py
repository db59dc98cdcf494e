"""How long a case may take: a rough guess for plans, from arithmetic and round speeds.

Nothing here is measured. On a GPU most cases are over in seconds, so that starting the worker
(imports, CUDA context) decides; long prompts and large models take their floating-point operations
at the share of its peak that a large card reaches in eager code. A trace plays the modules once a
phase, whatever their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec

GPU_START_S = 6.0
"""Imports of torch and transformers in a fresh process: nothing is on the card yet."""

_GPU_CONTEXT_S = 2.0
"""The CUDA context, its libraries, and their end."""

_GPU_STEPS = 3
_HALF_FLOPS = 150e12
_FLOAT32_FLOPS = 15e12
_LOAD_BYTES_PER_S = 5e9
_KERNEL_LAUNCH_S = 0.5e-3
"""Of a decoder layer in eager code: some dozens of kernels, launched one by one."""

_TRACE_BASE_S = 0.2
_TRACE_LAYER_S = {"inference": 0.02, "training": 0.06}

_UNKNOWN_S = {"cuda": 30.0, "trace": 3.0}
"""For a model whose blocks `estimator.families` does not know."""

_BYTES_A_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a case by what they occupy.

    `start_s` and `host_s` are the host's, which many workers spend side by side: before anything is
    on the card, and after. `gpu_s` are those of the GPU's work, spent one worker after another.
    """

    start_s: float
    host_s: float = 0.0
    gpu_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds of a worker that has the machine to itself."""
        return self.start_s + self.host_s + self.gpu_s


def guess_duration(case: Case, source: str) -> Duration:
    """Return how long a case may take from one source (`cuda` or `trace`).

    Raises:
        ModelError: when the case's model cannot be found or read.
    """
    try:
        spec = parse_spec(load_config(case.model))
    except UnsupportedError:
        return Duration(_UNKNOWN_S[source])
    layers = len(spec.layers)
    if source == "trace":
        return Duration(_TRACE_BASE_S + _TRACE_LAYER_S[case.task] * layers)
    parameters = spec.parameters
    tokens = case.batch_size * case.local_length
    scores = case.batch_size * case.sequence_length**2
    forward = 2 * parameters * tokens + 4 * scores * spec.heads * spec.head_dim * layers
    half = case.dtype != "float32" or case.mixed_precision is not None
    forward_s = forward / (_HALF_FLOPS if half else _FLOAT32_FLOPS)
    load_s = parameters * _BYTES_A_VALUE[case.dtype] / _LOAD_BYTES_PER_S
    if case.training:
        steps = _GPU_STEPS * case.gradient_accumulation_steps
        passes = steps * (4 if case.gradient_checkpointing else 3)
        gpu_s = passes * forward_s
    else:
        passes = case.max_new_tokens or 0
        gpu_s = forward_s + passes * parameters / _HALF_FLOPS
    host_s = _GPU_CONTEXT_S + load_s + passes * _KERNEL_LAUNCH_S * layers
    return Duration(GPU_START_S, host_s, gpu_s)
