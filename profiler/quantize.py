"""Quantized bases by bitsandbytes: int8, nf4 and fp4, with random or loaded weights."""

from __future__ import annotations

from typing import Any

from estimator.case import Case
from estimator.errors import UnsupportedError


def quantization_config(case: Case, dtype: Any) -> Any:
    """Return transformers' `BitsAndBytesConfig` of a case, or None."""
    if case.quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if case.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=case.quantization,
        bnb_4bit_use_double_quant=case.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def quantize_model(case: Case, model: Any, device: Any, dtype: Any) -> Any:
    """Replace a meta model's linears by quantized ones with random weights on `device`.

    Raises:
        UnsupportedError: on meta, where bitsandbytes' kernels cannot be played yet.
    """
    raise UnsupportedError(
        f"quantization {case.quantization!r} cannot be traced or measured with random weights yet; "
        "give a local checkpoint folder to gpumem profile"
    )
