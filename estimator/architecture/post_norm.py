"""Formulas of layers whose norms stand behind the sums: BERT's, run as a decoder, OPT-350m's.

Source: transformers/models/bert/modeling_bert.py (`BertLayer.forward`, `BertSelfOutput.forward`),
opt/modeling_opt.py (`OPTDecoderLayer.forward`).
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.parts import activation, add, dropout, linear
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, Mlp, Norm


def post_norm_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Attention, sum, norm, plain MLP, sum, norm; the MLP's inner product is named to the end."""
    assert isinstance(spec.mlp, Mlp)
    attended, probabilities = self_attention(tape, x, spec.attention, ctx)
    h = _summed(tape, attended, x, spec.attention_out_norm, spec.dropout, ctx)
    inner = linear(tape, h, spec.mlp.up, ctx)
    hidden = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    fed = linear(tape, hidden, spec.mlp.down, ctx)
    out = _summed(tape, fed, h, spec.mlp_out_norm, spec.dropout, ctx)
    tape.drop(hidden, h, probabilities)
    return out


def norm_first_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """RoBERTa's with norms before the blocks; the MLP's is in the module of its first linear."""
    return _norm_first(tape, x, spec, ctx, spec.dropout, named=False)


def norm_first_named_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Megatron's, whose MLP's input is named to the end."""
    return _norm_first(tape, x, spec, ctx, spec.dropout, named=True)


def norm_first_undropped_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """XLM-RoBERTa XL's: no dropout behind the MLP, whose input is named to the end."""
    return _norm_first(tape, x, spec, ctx, 0.0, named=True)


def _norm_first(tape: Tape, x: Tensor, spec: Layer, ctx: Context, p: float, named: bool) -> Tensor:
    assert isinstance(spec.mlp, Mlp)
    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    h = _summed(tape, attended, x, None, spec.dropout, ctx)
    tape.drop(normed)
    given = norm(tape, h, spec.post_norm, ctx)
    inner = linear(tape, given, spec.mlp.up, ctx)
    if not named:
        tape.drop(given)
    hidden = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    fed = linear(tape, hidden, spec.mlp.down, ctx)
    out = _summed(tape, fed, h, None, p, ctx)
    tape.drop(hidden, h, probabilities, given if named else None)
    return out


def flat_post_norm_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """OPT-350m's: an MLP on [B * Q, hidden], of which each step lets go of the one before."""
    assert isinstance(spec.mlp, Mlp)
    attended, probabilities = self_attention(tape, x, spec.attention, ctx)
    h = _summed(tape, attended, x, spec.attention_out_norm, spec.dropout, ctx)
    inner = linear(tape, h, spec.mlp.up, ctx, viewed=False)
    hidden = activation(tape, inner, spec.mlp.activation, ctx)
    tape.drop(inner)
    fed = linear(tape, hidden, spec.mlp.down, ctx, viewed=False)
    tape.drop(hidden)
    out = _summed(tape, fed, h, spec.mlp_out_norm, spec.dropout, ctx)
    tape.drop(h, probabilities)
    return out


def _summed(
    tape: Tape, x: Tensor, residual: Tensor, after: Norm | None, p: float, ctx: Context
) -> Tensor:
    """Dropout, sum with the residual, norm; `x` is consumed."""
    dropped = dropout(tape, x, p, ctx)
    tape.drop(x)
    total = add(tape, dropped, residual)
    out = norm(tape, total, after, ctx)
    tape.drop(total, dropped)
    return out
