"""The training loop that is measured and traced: Trainer's step.

It is written once and run on CUDA tensors by the measurement and on meta tensors by the
trace; an observer is told where each phase begins. Python references are dropped where Trainer
drops them, because they decide what is alive. generate's loop is in `profiler.generation`.

Source: Trainer.training_step and Trainer._run_epoch (transformers 5.17).
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from estimator.case import Case
from profiler import losses

TRAINING_STEPS = 3
MAX_GRAD_NORM = 1.0


class Observer(Protocol):
    """What a loop tells to whoever is watching."""

    def phase(self, name: str) -> None:
        """A phase of the run begins; the one before has ended."""

    def step(self, index: int) -> None:
        """Training step `index` (from 0), or the run's only generate, begins."""


def make_batch(case: Case, vocab_size: int, device: Any) -> dict[str, Any]:
    """Return a full, unpadded batch: int64 tensors of shape [batch_size, sequence_length].

    `input_ids`, `attention_mask` and, in training, `labels`, as Trainer's collator makes them.
    Of sequences that several GPUs share it is one GPU's part, with the positions and shifted labels
    that DeepSpeed's loader makes (`UlyssesSPDataLoaderAdapter`).
    """
    import torch

    shape = (case.batch_size, case.local_length)
    batch = {
        "input_ids": torch.randint(0, vocab_size, shape, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.int64, device=device),
    }
    if case.parallelism is not None:
        batch["position_ids"] = torch.zeros(shape, dtype=torch.int64, device=device)
    if case.training:
        labels = "labels" if case.parallelism is None else "shift_labels"
        batch[labels] = torch.randint(0, vocab_size, shape, device=device)
    return batch


def training_steps(
    model: Any,
    optimizer: Any,
    batch: dict[str, Any],
    case: Case,
    observer: Observer,
    steps: int = TRAINING_STEPS,
) -> None:
    """Run Trainer's step `steps` times on one batch: forward, backward, clip, step, zero_grad.

    Args:
        batch: what `make_batch` returned; the same batch serves every micro-batch.
        observer: hears `step(i)`, then the phases `forward`, `backward`, `optimizer_step`.
    """
    import torch

    device = batch["input_ids"].device
    scaler = _grad_scaler(case, device)
    # Under sequence parallelism the ranks' losses are weighted after the model's forward instead.
    counts_items = None in accepted_names(model) and case.parallelism is None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for index in range(steps):
        observer.step(index)
        for _ in range(case.gradient_accumulation_steps):
            observer.phase("forward")
            items = None
            if counts_items:
                items = batch["labels"].ne(-100).sum() * case.gradient_accumulation_steps
            inputs = losses.inputs_of(case, batch, items)
            outputs = run_forward(model, case, device, inputs)
            loss = losses.loss_of(case, outputs, batch, items)
            if not case.keep_logits:
                del outputs
            observer.phase("backward")
            (loss if scaler is None else scaler.scale(loss)).backward()
            # TRL's SFTTrainer still holds the outputs here; Trainer let go of them before.
            outputs = None
            loss = loss.detach()
        observer.phase("optimizer_step")
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trainable, MAX_GRAD_NORM)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        model.zero_grad()
        del norm, loss


def accepted_names(model: Any) -> set[str | None]:
    """Return the names that the model's forward takes; None stands for any further keyword.

    Trainer passes `num_items_in_batch` where any keyword is taken, generate what is named.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters.values()
    return {None if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def autocast_dtype(case: Case) -> Any:
    """Return the half type that a case's autocast computes in, or None."""
    import torch

    return {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[case.mixed_precision]


def run_forward(model: Any, case: Case, device: Any, inputs: dict[str, Any]) -> Any:
    """Call the model as accelerate prepares it: under autocast, with outputs cast to fp32.

    Source: Accelerator.prepare_model (`convert_outputs_to_fp32`).
    """
    dtype = autocast_dtype(case)
    if dtype is None:
        return model(**inputs)
    from accelerate.utils import convert_outputs_to_fp32

    def forward(**kwargs: Any) -> Any:
        with _autocast(device, dtype):
            return model(**kwargs)

    return convert_outputs_to_fp32(forward)(**inputs)


def _autocast(device: Any, dtype: Any) -> Any:
    if device.type == "meta":
        # torch knows no autocast of meta tensors; the trace brings its own.
        from profiler.trace.autocast import autocast_context

        return autocast_context(dtype)
    import torch

    return torch.autocast(device.type, dtype=dtype)


def _grad_scaler(case: Case, device: Any) -> Any:
    import torch

    """Trainer's scaler under fp16; a few bytes, which a trace leaves out."""

    scaled = case.mixed_precision == "fp16" and device.type == "cuda"
    return torch.GradScaler(device.type) if scaled else None
