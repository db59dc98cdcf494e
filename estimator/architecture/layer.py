"""Formulas of a whole decoder layer, and of the head with its loss.

Source: transformers' `LlamaDecoderLayer.forward`, `GPT2Block.forward`, loss/loss_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable

from estimator.architecture import (
    alibi,
    altup,
    falcon,
    falcon_h1,
    fp32_scores,
    gemma4,
    griffin,
    inlined,
    post_norm,
    shared_layers,
    shortcut,
    single,
    split,
)
from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm, norm_in_place_of
from estimator.architecture.parts import (
    activation,
    add,
    capped,
    cast,
    dropout,
    half_weight,
    linear,
    operands,
    parameter,
    product_input,
    scale,
)
from estimator.architecture.streams import out_of_streams
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, ModelSpec

LAYERS: dict[str, Callable[[Tape, Tensor, Layer, Context], Tensor]] = {
    "inlined": inlined.inlined_layer,
    "inlined_flat": inlined.flat_layer,
    "post_norm_flat": post_norm.flat_post_norm_layer,
    "inlined_nested": inlined.nested_layer,
    "inlined_post_norm": inlined.post_norm_layer,
    "norm_first": post_norm.norm_first_layer,
    "norm_first_named": post_norm.norm_first_named_layer,
    "norm_first_undropped": post_norm.norm_first_undropped_layer,
    "post_norm": post_norm.post_norm_layer,
    "falcon": falcon.falcon_layer,
    "griffin": griffin.griffin_layer,
    "falcon_h1": falcon_h1.falcon_h1_layer,
    "altup": altup.altup_layer,
    "bloom": alibi.bloom_layer,
    "gemma4": gemma4.gemma4_layer,
    "shared": shared_layers.shared_layer,
    "shortcut": shortcut.shortcut_layer,
    "single": single.single_layer,
    "single_fp32": single.single_layer_fp32,
    "split_parallel": split.parallel_layer,
    "summed_parallel": fp32_scores.parallel_layer,
}
"""Formulas of a layer by `Layer.recipe`, for those that are not pre-norm."""


def decoder_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Play a layer; `x` ([B, Q, hidden]) is borrowed."""
    if spec.recipe != "pre_norm":
        return LAYERS[spec.recipe](tape, x, spec, ctx)
    if spec.parallel:
        return _parallel_layer(tape, x, spec, ctx)
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    if not spec.holds_attended_input:
        tape.drop(normed)
    attended = _attended(tape, attended, spec, ctx)
    h = add(tape, x, attended)
    if not spec.holds_attended:
        tape.drop(attended)
    before = normed
    normed = norm(tape, h, spec.post_norm, ctx)
    fed = feed_forward(tape, normed, spec.mlp, ctx)
    fed = _residual_dropout(tape, fed, spec, ctx)
    tape.drop(normed)
    fed = norm_in_place_of(tape, fed, spec.mlp_out_norm, ctx)
    fed = _residual_scaled(tape, fed, spec)
    out = add(tape, h, fed)
    # The caller of the attention still holds the probabilities that it was handed.
    tape.drop(fed, h, probabilities)
    if spec.holds_attended:
        tape.drop(attended)
    if spec.holds_attended_input:
        tape.drop(before)
    return out


def _parallel_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Attention and MLP of the same norm, both added to the residual at the end.

    Source: `PhiDecoderLayer.forward`, `CohereDecoderLayer.forward`.
    """
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    attended = _attended(tape, attended, spec, ctx)
    fed = feed_forward(tape, normed, spec.mlp, ctx)
    fed = _residual_dropout(tape, fed, spec, ctx)
    both = add(tape, x, attended)
    out = add(tape, both, fed)
    tape.drop(both, fed, attended, normed, probabilities)
    return out


def _attended(tape: Tape, attended: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Return what is added to the residual for the attention's output."""
    if spec.attended_dropout:
        attended = _residual_dropout(tape, attended, spec, ctx)
    attended = norm_in_place_of(tape, attended, spec.attention_out_norm, ctx)
    return _residual_scaled(tape, attended, spec)


def _residual_scaled(tape: Tape, x: Tensor, spec: Layer) -> Tensor:
    """Granite's `hidden_states * residual_multiplier`; the factor is named until the sum."""
    if not spec.residual_scaled:
        return x
    out = scale(tape, x)
    tape.drop(x)
    return out


def _residual_dropout(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    out = dropout(tape, x, spec.dropout, ctx)
    tape.drop(x)
    return out


def final_norm(tape: Tape, x: Tensor, spec: ModelSpec, ctx: Context) -> Tensor:
    """The norm before the head, or what else ends the model."""
    if spec.stream_ends is not None:
        joined = out_of_streams(tape, x, spec.stream_ends, ctx)
        return norm_in_place_of(tape, joined, spec.final_norm, ctx)
    out = norm(tape, x, spec.final_norm, ctx)
    if spec.project_out is not None:
        wide, out = out, linear(tape, out, spec.project_out, ctx)
        tape.drop(wide)
    return out


def logits(tape: Tape, x: Tensor, spec: ModelSpec, ctx: Context, rows: int) -> Tensor:
    """The head's product for `rows` tokens: [rows, vocabulary]."""
    x = _transformed(tape, x, spec, ctx, rows)
    if x.width != ctx.outer_width and ctx.amp is None:
        wide, wanted = x, tape.view(x, rows * spec.hidden_size)
        x = cast(tape, wanted, ctx.outer_width)
        tape.drop(wide, wanted)
    if spec.head_input_scaled:
        given, x = x, scale(tape, x)
        tape.drop(given)
        # The model's forward names it to its end, where an autocast context ends, too.
        tape.cache(x)
    wanted = x
    if spec.head_transform is None and not ctx.training:
        wanted = tape.view(x, rows * spec.hidden_size)
        tape.drop(x)
    read = product_input(tape, wanted, ctx)
    # A head with a transform names what the transform made.
    named = None if spec.head_transform is None else wanted
    if named is None:
        tape.drop(wanted)
    table = parameter(spec.head.weight_count, ctx.outer_width, ctx.full)
    weight = half_weight(tape, table, ctx)
    inputs: tuple[Tensor, ...] = (weight, read)
    if spec.head.bias:
        inputs = (parameter(spec.head.outputs, ctx.width, ctx.full), weight, read)
    count = rows * spec.vocab_size
    saves = operands(read, weight)
    out = tape.op(count, read.width, inputs, saves, viewed=True, component="logits")
    tape.drop(weight, read, named)
    if spec.logits_fp32:
        narrow, out = out, as_logits(cast(tape, out, 4))
        tape.drop(narrow)
    if spec.logits_scaled:
        scaled = tape.op(count, out.width, (out,), component="logits")
        tape.drop(out)
        out = scaled
    return capped(tape, out, "logits") if spec.logits_softcap else out


def _transformed(tape: Tape, x: Tensor, spec: ModelSpec, ctx: Context, rows: int) -> Tensor:
    """What the head reads: of `x`, which is borrowed, the wanted tokens' rows."""
    transform = spec.head_transform
    if transform is None:
        return tape.alias(x)
    wanted = tape.view(x, rows * spec.hidden_size)
    inner = linear(tape, wanted, transform.dense, ctx)
    tape.drop(wanted)
    activated = activation(tape, inner, transform.activation, ctx)
    tape.drop(inner)
    out = norm(tape, activated, transform.norm, ctx)
    tape.drop(activated)
    return out


def as_logits(x: Tensor) -> Tensor:
    """Call a tensor's bytes logits, and return it."""
    if x.storage is not None:
        x.storage.component = "logits"
    return x


def loss(tape: Tape, scores: Tensor, ctx: Context, plain: bool = False) -> Tensor:
    """Cross-entropy over all tokens, as ForCausalLMLoss computes it: an fp32 copy of the logits,
    a log-softmax that is saved, and in backward two more fp32 buffers of the logits' size.

    Source: transformers/loss/loss_utils.py; aten's log_softmax and nll_loss.
    """
    T = ctx.tokens
    if plain:
        # Labels come as they are, and only autocast casts.
        given = tape.alias(scores) if ctx.amp is None else as_logits(cast(tape, scores, 4))
        log_probabilities = tape.op(
            given.count, given.width, (given,), saves_out=True, component="logits"
        )
        value = tape.op(1, given.width, (log_probabilities,), (log_probabilities,), aux=(4,))
        tape.drop(log_probabilities, given)
        return value
    copy = as_logits(cast(tape, scores, 4))
    # Of sequences that several GPUs share the loader has shifted the labels.
    shifted = labels = None
    saved: tuple[Tensor, ...] = ()
    if ctx.sp_size == 1:
        labels = tape.new(ctx.batch * (ctx.queries + 1), 8)
        shifted = tape.new(T, 8)
        saved = (shifted,)
    log_probabilities = tape.op(copy.count, 4, (copy,), saves_out=True, component="logits")
    value = tape.op(1, 4, (log_probabilities,), (log_probabilities, *saved), aux=(4,))
    tape.drop(log_probabilities, shifted, labels, copy)
    return value
