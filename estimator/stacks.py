"""Older stacks that people measured with, as named presets of what differs in memory.

A case's `stack` names one; `null` is the behaviour of the installed (or pinned) versions. Only what
changes memory is listed; the rest of the run is today's code. docs/stacks.md says which published
runs each of them stands for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What an older stack did otherwise.

    In training: `reentrant_checkpointing`: torch.utils.checkpoint with use_reentrant=True, the
    default of `gradient_checkpointing_enable` before transformers 5. `shifted_logits`: the loss
    copied fp32 logits without their last position (`logits[..., :-1, :].contiguous()`), before
    transformers 4.50; today labels are shifted instead. `uncast_loss_types`: model types whose own
    loss did so in the logits' dtype, without the fp32 copy. `cached_projections`: model types that
    kept a key/value cache in training, checkpointed or not, until the loop let go of the outputs:
    views of what the named module returned. `fp32_norms_on_quantized`: norms of a quantized base
    are cast to fp32, without the rest of k-bit preparation; bitsandbytes' linears answer in their
    input's dtype, so the whole residual stream is fp32 then.

    `fused_kernels`: RMSNorm and cross-entropy are one kernel each (unsloth's, as fms-acceleration
    brings them): the norm saves its input and one number a row, and writes its gradient over the
    one that it is given; the loss saves the logits that it read, and writes their gradient there.

    In inference: `full_logits`: logits of every prompt token, and an fp32 copy of them; since
    transformers 4.45 generate asks for the last token's only. `tuple_cache`: keys and values went
    from step to step as tuples, the old ones held while the new ones were made: twice the whole
    cache. `rotary_caches`: every layer had cos and sin of all positions as buffers.
    `fp32_products`: float16 inputs are multiplied with 4-bit weights in fp32, which is what
    bitsandbytes does where the loader names no `bnb_4bit_compute_dtype`.
    """

    name: str
    source: str
    reentrant_checkpointing: bool = False
    shifted_logits: bool = False
    uncast_loss_types: tuple[str, ...] = ()
    cached_projections: tuple[tuple[str, str], ...] = ()
    fp32_norms_on_quantized: bool = False
    fused_kernels: bool = False
    full_logits: bool = False
    tuple_cache: bool = False
    rotary_caches: bool = False
    fp32_products: bool = False


TODAY = Stack(name="today", source="the pinned versions (constraints.txt)")
"""What `null` means: nothing differs."""

STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            name="transformers-4.35",
            source="transformers 4.35.2 models/llama/modeling_llama.py and generation/utils.py; "
            "the same in 4.34 to 4.36",
            reentrant_checkpointing=True,
            shifted_logits=True,
            full_logits=True,
            tuple_cache=True,
            rotary_caches=True,
        ),
        Stack(
            name="transformers-4.32-defaults",
            source="transformers 4.32 utils/quantization_config.py: load_in_4bit and nothing more",
            reentrant_checkpointing=True,
            shifted_logits=True,
            full_logits=True,
            tuple_cache=True,
            rotary_caches=True,
            fp32_products=True,
        ),
        Stack(
            name="transformers-4.38",
            source="transformers 4.38.2 models/qwen2/modeling_qwen2.py (tuples became a Cache and "
            "tuples again at each step) and generation/utils.py",
            reentrant_checkpointing=True,
            shifted_logits=True,
            full_logits=True,
            tuple_cache=True,
            rotary_caches=True,
        ),
        Stack(
            name="transformers-4.48",
            source="transformers 4.48.1 loss/loss_utils.py and modeling_utils.py",
            reentrant_checkpointing=True,
            shifted_logits=True,
            uncast_loss_types=("gpt_bigcode",),
            cached_projections=(("gpt_bigcode", "c_attn"),),
        ),
        Stack(
            name="fms-fast-kernels",
            source="foundation-model-stack/fms-acceleration, plugin foak (fast_loss, "
            "fast_rms_layernorm), on transformers 4.48.1; unsloth kernels/rms_layernorm.py and "
            "cross_entropy_loss.py",
            reentrant_checkpointing=True,
            shifted_logits=True,
            uncast_loss_types=("gpt_bigcode",),
            cached_projections=(("gpt_bigcode", "c_attn"),),
            fused_kernels=True,
        ),
        Stack(
            name="fms-acceleration",
            source="the published runs of foundation-model-stack/fms-acceleration (trl 0.13.0, "
            "transformers 4.48.1, peft 0.13.2); norms inferred from their peaks, to 0.04 %",
            reentrant_checkpointing=True,
            shifted_logits=True,
            uncast_loss_types=("gpt_bigcode",),
            cached_projections=(("gpt_bigcode", "c_attn"),),
            fp32_norms_on_quantized=True,
        ),
    )
}
"""Presets by name."""
