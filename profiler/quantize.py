"""Quantized bases by bitsandbytes: int8, nf4 and fp4, with random weights or a checkpoint's.

Random weights are made one linear at a time and quantized at once, so that the device never holds
the full-precision model: what from_pretrained does, too. On meta, bitsandbytes' own code runs on
meta tensors; its custom operations know how to (`register_fake`).

Source: transformers/quantizers/quantizer_bnb_{4,8}bit.py, bitsandbytes/nn/modules.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from estimator.case import Case


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

    The output layer, embeddings and norms stay as they are, as in from_pretrained.
    """
    import bitsandbytes
    from transformers.modeling_utils import local_torch_dtype
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization_config(case, dtype), pre_quantized=False)
    # Biases of the new linears have torch's default dtype, which from_pretrained sets meanwhile.
    with local_torch_dtype(dtype):
        quantizer.preprocess_model(model=model, device_map={"": device}, dtype=dtype)
    with _tables_on(device):
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                _fill_4bit(module, device, dtype)
            elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
                _fill_8bit(module, device)
            else:
                continue
            if module.bias is not None:
                # The quantizer makes it in fp32, and from_pretrained loads it in the model's dtype.
                module.bias.data = module.bias.data.to(dtype)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    return model


def _random(module: Any, device: Any, dtype: Any) -> Any:
    import torch

    shape = (module.out_features, module.in_features)
    tensor = torch.empty(shape, dtype=dtype, device=device)
    return tensor if device.type == "meta" else tensor.normal_(0.0, 0.02)


def _fill_4bit(module: Any, device: Any, dtype: Any) -> None:
    from bitsandbytes.nn import Params4bit

    old = module.weight
    weight = Params4bit(
        _random(module, device, dtype),
        requires_grad=False,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
        module=module,
    )
    module.weight = weight._quantize(device)


def _fill_8bit(module: Any, device: Any) -> None:
    import torch
    from bitsandbytes.nn import Int8Params

    weight = Int8Params(_random(module, device, torch.float16), requires_grad=False)
    if device.type == "meta":
        # int8_vectorwise_quant refuses meta for an output that threshold 0 does not have.
        weight.data = weight.data.to(torch.int8)
        weight.CB = weight.data
        weight.SCB = torch.empty(module.out_features, dtype=torch.float32, device=device)
        module.weight = weight
    else:
        module.weight = weight._quantize(device)


@contextlib.contextmanager
def _tables_on(device: Any) -> Iterator[None]:
    """Put bitsandbytes' shared 8-bit code where it is on a GPU: on the device, once.

    A meta table is taken back afterwards: the next model in this process may be a real one.
    """
    from bitsandbytes import functional

    tables = functional.name2qmap
    before = tables.get("dynamic")
    if before is None or before.device != device:
        tables["dynamic"] = functional.create_dynamic_map().to(device)
    try:
        yield
    finally:
        if device.type == "meta":
            tables.pop("dynamic")
            if before is not None:
                tables["dynamic"] = before
