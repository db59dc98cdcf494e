"""Builds the model of a case on a device: `cuda` for a measurement, `meta` for a trace.

Both sources run this same code, so what is compared is the accounting, not the model.
Weights are random (shapes and dtypes decide memory, values do not) unless the case names a
local checkpoint folder and the device can hold data. torch is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import EnvironmentUnavailable, ModelError, UnsupportedError
from estimator.families import parse_spec
from estimator.hub_cache import cached_snapshot
from estimator.stacks import STACKS
from profiler import losses, optimizers, quantize, stacks

_REFUSALS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    NotImplementedError,
)
"""What transformers raises for a configuration that it cannot use."""


def build_model(case: Case, device: Any, weights: str = "auto") -> Any:
    """Return the model of a case as a user would have it before the first step.

    Quantized, wrapped in adapters, checkpointing enabled, in train or eval mode.

    Args:
        case: the run.
        device: a `torch.device` or its name.
        weights: `auto` loads a local checkpoint folder where the case names one; `random` never
            does.

    Raises:
        ModelError: transformers refuses the configuration.
        UnsupportedError: transformers knows no causal language model of the type.
        EnvironmentUnavailable: the installed libraries do not go together.
    """
    # bitsandbytes speaks of every cast that it makes.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch

    transformers = _import_transformers()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device(device)
    dtype = getattr(torch, case.dtype)
    folder = checkpoint_folder(case) if weights == "auto" and device.type != "meta" else None
    if folder is not None:
        model = _load_checkpoint(folder, case, device, dtype)
    else:
        model = _build_random(case, device, dtype)
    if case.stack is not None:
        stacks.apply(STACKS[case.stack], model)
    if case.training:
        model = _prepare_training(case, model)
        model.train()
    else:
        if case.lora is not None:
            model = _add_adapters(case, model)
        model.eval()
        if case.lora is not None or case.mixed_precision is None:
            # What from_pretrained loads requires grad, which generate's no_grad makes nothing of;
            # but autocast remembers its casts of such weights, and not those of peft's frozen base.
            model.requires_grad_(False)
    return model


def _import_transformers() -> Any:
    """Import transformers, which refuses versions of its dependencies that it does not know."""
    try:
        import transformers
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise EnvironmentUnavailable(
            f"transformers cannot be used with the libraries that are installed: {reason}"
        ) from error
    return transformers


def build_optimizer(case: Case, model: Any) -> Any:
    """Return the optimizer of a training case over the model's trainable parameters."""
    return optimizers.build(case, model)


def checkpoint_folder(case: Case) -> Path | None:
    """Return the local folder with safetensors weights that the case names, or None.

    A path, or a Hub id whose files are in the Hub's cache on this machine.
    """
    if not isinstance(case.model, str):
        return None
    path = Path(case.model).expanduser()
    folder = path if path.is_dir() else cached_snapshot(case.model)
    if folder is None or not any(folder.glob("*.safetensors")):
        return None
    return folder


def build_config(case: Case) -> Any:
    """Return the transformers configuration object of a case.

    Raises:
        ModelError: the type is unknown to transformers, or it refuses the values.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    source = load_config(case.model)
    # Where the estimator knows the type, a wrong size gets the estimator's sentence.
    with contextlib.suppress(UnsupportedError):
        parse_spec(source)
    values = {
        key: value
        for key, value in source.config.items()
        if key not in ("model_type", "torch_dtype", "dtype")
    }
    # Models at hand may name code of their own; none of it is ever run here.
    values.pop("auto_map", None)
    values.pop("quantization_config", None)
    model_type = source.config["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"transformers {transformers.__version__} knows no model type {model_type!r}; "
            "a newer transformers may"
        )
    try:
        config = transformers.AutoConfig.for_model(model_type, **values)
    except (*_REFUSALS, StrictDataclassError) as error:
        raise ModelError(
            f"transformers refuses the configuration of {source.name}: {_line(error)}"
        ) from error
    # Trainer switches the cache off (TrainingArguments.use_cache), generate switches it on.
    config.use_cache = not case.training
    return config


def _attention_name(case: Case, device: Any) -> str | None:
    """Return the attention to ask transformers for.

    None for sdpa, which is transformers' own choice wherever a class supports it; a class that
    does not gets eager, as it does for a user who names nothing.
    """
    if case.attention == "sdpa":
        return None
    if device.type == "meta" and case.attention == "flash_attention_2":
        from profiler.trace.attention import FLASH_NAME, register_flash

        register_flash()
        return FLASH_NAME
    return case.attention


def _build_random(case: Case, device: Any, dtype: Any) -> Any:
    import torch
    import transformers

    config = build_config(case)
    try:
        # Always on meta first: what the device then holds is each parameter once, in module order,
        # as after from_pretrained.
        with torch.device("meta"), _cheap_initialization():
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=_attention_name(case, device)
            )
    except ImportError as error:
        raise UnsupportedError(f"{case.model_name}: {_line(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"transformers cannot build {case.model_name}: {_line(error)}") from error
    if case.attention == "flash_attention_2" and not model._supports_flash_attn:
        raise UnsupportedError(
            f"{type(model).__name__} of transformers supports no flash_attention_2; "
            "use attention sdpa or eager"
        )
    # A few classes name the CPU for a parameter; whoever loads a model moves them all.
    model.to("meta")
    # Tying is part of the initialization that was left out.
    model.tie_weights()
    if case.quantization:
        model = quantize.quantize_model(case, model, device, dtype)
    if device.type != "meta":
        materialize(model, device)
    return model


def materialize(model: Any, device: Any) -> None:
    """Replace a model's meta tensors by random weights and zero buffers on `device`, in place.

    Tied parameters stay tied. Values are drawn as initializers do (normal, 0.02).
    """
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.device.type != "meta":
                continue
            if id(parameter) not in made:
                tensor = torch.empty_like(parameter, device=device)
                if tensor.is_floating_point():
                    tensor.normal_(0.0, 0.02)
                made[id(parameter)] = torch.nn.Parameter(tensor, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros_like(buffer, device=device)


@contextlib.contextmanager
def _cheap_initialization() -> Iterator[None]:
    """Leave parameters as `torch.empty` gives them: values do not decide memory."""
    from transformers import initialization

    with initialization.no_init_weights():
        yield


def _load_checkpoint(folder: Path, case: Case, device: Any, dtype: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=_attention_name(case, device),
        quantization_config=quantize.quantization_config(case, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )


def _prepare_training(case: Case, model: Any) -> Any:
    """Do what Trainer and peft do to a model before the first step, in their order."""
    if case.checkpoints_layers and not model.supports_gradient_checkpointing:
        name = type(model).__name__
        raise UnsupportedError(f"{name} of transformers supports no gradient checkpointing")
    if case.lora is not None:
        if case.quantization and case.prepare_kbit:
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(
                model,
                use_gradient_checkpointing=case.checkpoints_layers,
                gradient_checkpointing_kwargs={"use_reentrant": _reentrant(case)},
            )
        model = _add_adapters(case, model)
    if case.checkpoints_layers:
        try:
            model.gradient_checkpointing_enable({"use_reentrant": _reentrant(case)})
        except ValueError as error:
            raise UnsupportedError(f"{case.model_name}: {_line(error)}") from error
    losses.prepare(case, model)
    return model


def _reentrant(case: Case) -> bool:
    return case.stack is not None and STACKS[case.stack].reentrant_checkpointing


def _add_adapters(case: Case, model: Any) -> Any:
    import peft

    lora = case.lora
    assert lora is not None
    targets = lora.target_modules
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=lora.use_dora,
        task_type="CAUSAL_LM",
    )
    try:
        # Where nothing has values, none are drawn: adapters of rank 256 take peft a minute.
        return peft.get_peft_model(model, config, low_cpu_mem_usage=model.device.type == "meta")
    except ValueError as error:
        raise ModelError(
            f"peft refuses the adapters of {case.model_name}: {_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    """Return an exception's message as one line."""
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
