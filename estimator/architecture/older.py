"""Formulas of what older software stacks did otherwise in training: see estimator/stacks.py."""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.layer import as_logits
from estimator.architecture.parts import cast
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import ModelSpec


def shifted_loss(tape: Tape, scores: Tensor, upcast: bool, ctx: Context) -> Tensor:
    """Cross-entropy before transformers 4.50: over a copy of the logits without their last
    position, whose backward copies its gradient into zeros of the whole; under autocast the loss
    is computed in fp32 in any case.

    Args:
        upcast: whether an fp32 copy of the logits is made first.

    Source: transformers 4.48.1 loss/loss_utils.py (`ForCausalLMLoss`) and
    models/gpt_bigcode/modeling_gpt_bigcode.py.
    """
    rows = ctx.batch * (ctx.queries - 1)
    copy = as_logits(cast(tape, scores, 4) if upcast else tape.alias(scores))
    if ctx.stack.fused_kernels:
        return _fused_loss(tape, copy, rows, ctx)
    # Of one sequence the slice is contiguous, and no copy is made.
    cut = tape.view(copy, copy.count // ctx.tokens * rows, copy.size)
    if ctx.batch > 1:
        view = cut
        cut = tape.op(view.count, view.width, (view,), grads=(PASS,), component="logits")
        tape.drop(view)
    labels = tape.new(rows, 8)
    wide = as_logits(cast(tape, cut, 4) if ctx.amp else tape.alias(cut))
    log_probabilities = tape.op(wide.count, wide.width, (wide,), saves_out=True, component="logits")
    value = tape.op(1, wide.width, (log_probabilities,), (log_probabilities, labels), aux=(4,))
    tape.drop(log_probabilities, wide, labels, cut, copy)
    return value


def _fused_loss(tape: Tape, copy: Tensor, rows: int, ctx: Context) -> Tensor:
    """Cross-entropy as one kernel over the cut logits, whose gradient is written over them.

    Source: unsloth kernels/cross_entropy_loss.py (`Fast_CrossEntropyLoss`).
    """
    count = copy.count // ctx.tokens * rows
    if ctx.batch > 1:
        # The gradient takes the cut logits' place until it is copied into zeros of the whole.
        cut = tape.op(
            count,
            copy.width,
            (copy,),
            grads=(copy.size,),
            temporaries=(count * copy.width,),
            component="logits",
        )
    else:
        cut = tape.view(copy, count, copy.size)
    labels = tape.new(rows, 8)
    wide = as_logits(cast(tape, cut, 4) if ctx.amp else tape.alias(cut))
    value = tape.op(1, 4, (wide,), (wide, labels), aux=(4 * rows,), grads=(PASS,))
    tape.drop(labels, wide, cut, copy)
    return value


def cached_projection(spec: ModelSpec, ctx: Context) -> Storage | None:
    """Return what a layer's cache keeps in training until the loop lets go of the outputs.

    Without checkpointing the attention saves the same projection anyway.
    """
    fused = spec.layers[0].attention.fused
    kept = spec.model_type in dict(ctx.stack.cached_projections)
    if not kept or fused is None or not ctx.checkpointing:
        return None
    width = ctx.width
    if ctx.amp is not None:
        # Under autocast a LayerNorm answers in fp32, and so does a quantized linear after it.
        width = 4 if ctx.quantization is not None else ctx.amp_width
    return Storage(ctx.tokens * fused.outputs * width, "kv_cache")
