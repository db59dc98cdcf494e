"""The same training steps played by transformers.Trainer itself: a check on `profiler.loops`.

Trainer is given what a user gives it: the model, the arguments that a case's fields stand for, and
a data set with as many samples as the steps take. It sets up the optimizer, autocast, the scaler,
clipping and checkpointing on its own; it is only listened to.

Source: Trainer.training_step and Trainer._run_epoch (transformers 5.17).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.loops import MAX_GRAD_NORM, TRAINING_STEPS, Observer
from profiler.optimizers import LEARNING_RATE


def training_steps(
    model: Any,
    batch: dict[str, Any],
    case: Case,
    observer: Observer,
    on_optimizer: Callable[[Any], None],
    steps: int = TRAINING_STEPS,
) -> None:
    """Let Trainer train for `steps` steps.

    Args:
        model: as `profiler.build.build_model` made it, on its device.
        batch: what `profiler.loops.make_batch` returned; it is emptied: every sample is a row of
            it, and Trainer's own loader makes the batches.
        observer: hears `step(i)`, then the phases `forward`, `backward`, `optimizer_step`.
        on_optimizer: is handed the optimizer that Trainer made, before the first step.

    Raises:
        UnsupportedError: the case's loop is not Trainer's.
    """
    if case.keep_logits:
        raise UnsupportedError(
            "Trainer lets go of the outputs before backward: the case's keep_logits is for the "
            "own loop"
        )
    if case.loss == "chunked":
        raise UnsupportedError(
            "the chunked loss is that of TRL's trainer, not of Trainer: it is for the own loop"
        )
    with tempfile.TemporaryDirectory(prefix="gpumem-") as folder:
        trainer = make_trainer(model, batch, case, steps, folder)
        _listen(trainer, observer, on_optimizer)
        trainer.train()


def make_trainer(model: Any, batch: dict[str, Any], case: Case, steps: int, folder: str) -> Any:
    """Return the Trainer of a case, ready to train; `batch` is emptied."""
    import transformers

    device = batch["input_ids"].device
    rows = [
        dict(zip(batch, row, strict=True))
        for row in zip(*(tensor.cpu() for tensor in batch.values()), strict=True)
    ]
    batch.clear()
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=case.batch_size,
        gradient_accumulation_steps=case.gradient_accumulation_steps,
        gradient_checkpointing=case.checkpoints_layers,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        optim=case.optimizer,
        optim_args=f"momentum={case.momentum}" if case.momentum else None,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=case.mixed_precision == "bf16",
        fp16=case.mixed_precision == "fp16",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # A machine with several GPUs would make it a DataParallel; a case is one GPU's.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    count = steps * case.gradient_accumulation_steps
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows * count)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _listen(trainer: Any, observer: Observer, on_optimizer: Callable[[Any], None]) -> None:
    """Tell the observer where Trainer's steps and phases begin, without changing either."""
    import transformers

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                on_optimizer(trainer.optimizer.optimizer)
            observer.step(state.global_step)

    play, backward = trainer.training_step, trainer.accelerator.backward

    def training_step(*args: Any, **kwargs: Any) -> Any:
        observer.phase("forward")
        loss = play(*args, **kwargs)
        if trainer.accelerator.sync_gradients:
            observer.phase("optimizer_step")
        return loss

    def backward_phase(*args: Any, **kwargs: Any) -> None:
        observer.phase("backward")
        backward(*args, **kwargs)

    trainer.add_callback(Steps())
    trainer.training_step = training_step
    trainer.accelerator.backward = backward_phase
