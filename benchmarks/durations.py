"""How long a case may take: a rough guess for plans, from arithmetic and round speeds.

Nothing here is measured. On a GPU most cases are over in seconds, so that starting the worker
(imports, CUDA context) decides; long prompts and large models take their floating-point operations
at the share of its peak that a large card reaches in eager code. A trace plays the modules once a
phase, whatever their sizes.
"""

from __future__ import annotations

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec

GPU_START_S = 8.0
"""Imports of torch and transformers in a fresh process, the CUDA context, and its end."""

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


def guess_seconds(case: Case, source: str) -> float:
    """Return the seconds that a case may take from one source (`cuda` or `trace`).

    Raises:
        ModelError: when the case's model cannot be found or read.
    """
    try:
        spec = parse_spec(load_config(case.model))
    except UnsupportedError:
        return _UNKNOWN_S[source]
    layers = len(spec.layers)
    if source == "trace":
        return _TRACE_BASE_S + _TRACE_LAYER_S[case.task] * layers
    parameters = spec.parameters
    tokens = case.batch_size * case.sequence_length
    scores = case.batch_size * case.sequence_length**2
    forward = 2 * parameters * tokens + 4 * scores * spec.heads * spec.head_dim * layers
    half = case.dtype != "float32" or case.mixed_precision is not None
    forward_s = forward / (_HALF_FLOPS if half else _FLOAT32_FLOPS)
    launch_s = _KERNEL_LAUNCH_S * layers
    load_s = parameters * _BYTES_A_VALUE[case.dtype] / _LOAD_BYTES_PER_S
    if case.training:
        passes = 4 if case.gradient_checkpointing else 3
        steps = _GPU_STEPS * case.gradient_accumulation_steps
        run_s = steps * passes * (forward_s + launch_s)
    else:
        new = case.max_new_tokens or 0
        run_s = forward_s + new * (launch_s + parameters / _HALF_FLOPS)
    return GPU_START_S + load_s + run_s
