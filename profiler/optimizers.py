"""Optimizers set up as `transformers.Trainer` sets them up for a name of `optim`.

Source: transformers/trainer_optimizer.py (the handlers) and Trainer.create_optimizer (two
parameter groups; embeddings registered for 32-bit states with bitsandbytes' 8-bit optimizers).
"""

from __future__ import annotations

import re
from typing import Any

from estimator.architecture.optimizer import BITSANDBYTES_NAMES
from estimator.case import Case
from estimator.errors import UnsupportedError

LEARNING_RATE = 1e-5
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


def build(case: Case, model: Any) -> Any:
    """Return the optimizer of a training case over a model's trainable parameters.

    Raises:
        UnsupportedError: the optimizer is not set up here yet.
    """
    groups = parameter_groups(model)
    name = case.optimizer
    if name in ("adamw_torch", "adamw_torch_fused"):
        import torch

        # foreach is what CUDA picks on its own; off CUDA it has to be asked for.
        choice = {"fused": True} if name == "adamw_torch_fused" else {"foreach": True}
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, **choice)
    if name == "sgd":
        import torch

        return torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=case.momentum, foreach=True)
    if name == "adagrad":
        import torch

        return torch.optim.Adagrad(groups, lr=LEARNING_RATE, foreach=True)
    if name == "rmsprop":
        import torch

        return torch.optim.RMSprop(groups, lr=LEARNING_RATE, momentum=case.momentum, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=LEARNING_RATE, scale_parameter=False, relative_step=False)
    if BITSANDBYTES_NAMES.search(name):
        return _bitsandbytes(name, groups, model)
    raise UnsupportedError(f"optimizer {name!r} is not set up here; use adamw_torch_fused or sgd")


def parameter_groups(model: Any) -> list[dict[str, Any]]:
    """Return Trainer's two groups of trainable parameters: with weight decay, and without.

    Source: Trainer.get_decay_parameter_names and Trainer.create_optimizer.
    """
    import torch

    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for parameter in module.parameters(recurse=False)
    }
    decay: list[Any] = []
    rest: list[Any] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = id(parameter) in norms or _NO_DECAY.search(name)
            (rest if exempt else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _bitsandbytes(name: str, groups: list[dict[str, Any]], model: Any) -> Any:
    import bitsandbytes
    import torch

    # The manager is one a process, and knows parameters by their ids, which later models reuse.
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.initialize()
    bits = 8 if "8bit" in name else 32
    kinds = {
        "adamw": bitsandbytes.optim.AdamW,
        "lion": bitsandbytes.optim.Lion,
        "ademamix": bitsandbytes.optim.AdEMAMix,
        "rmsprop": bitsandbytes.optim.RMSprop,
    }
    kind = next(kind for part, kind in kinds.items() if part in name)
    # RMSprop has no paged form.
    paged = {"is_paged": True} if "paged" in name else {}
    optimizer = kind(groups, lr=LEARNING_RATE, optim_bits=bits, **paged)
    if bits == 8:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer
