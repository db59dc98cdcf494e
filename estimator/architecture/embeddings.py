"""Formulas of the embeddings: tokens looked up, scaled, with positions, normalized, dropped out.

Source: `forward` of transformers' models (`LlamaModel`, `GPT2Model`, `GemmaModel`, `XGLMModel`).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.norms import norm
from estimator.architecture.outside import EMBEDDED, TOKEN_INPUTS
from estimator.architecture.parts import add, dropout, linear, parameter, scale
from estimator.architecture.streams import into_streams
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import ModelSpec, TokenTables


def embeddings(tape: Tape, spec: ModelSpec, ctx: Context) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Look the tokens up: [B, Q, hidden]; learned positions are added, Gemma's are scaled.

    Returns the layers' input, and what the model's forward holds until its end: `inputs_embeds`
    is the layers' input itself, except where positions are added to it or dropout copies it. Where
    it is cloned, its copy is, beside the layers' input.

    Backward makes a dense gradient of the whole table, and sorts the indices first when there
    are more than 3072 (aten/src/ATen/native/cuda/Embedding.cu).
    """
    count = ctx.tokens * spec.hidden_size
    table = parameter(spec.vocab_size * spec.embedding_size, ctx.outer_width, ctx.full)
    found = ctx.tokens * spec.embedding_size
    out = tape.op(found, ctx.outer_width, (table,), temporaries=_sort(ctx.tokens))
    if spec.embedding_scaled:
        scaled = tape.op(count, ctx.width, (out,))
        tape.drop(out)
        out = scaled
    out = _with_input_grads(out, ctx)
    if spec.token_tables is not None:
        tape.outside[TOKEN_INPUTS] = _token_inputs(tape, out, spec.token_tables, ctx)
    if spec.stream_ends is not None:
        hidden, held = into_streams(tape, out, spec.stream_ends, ctx)
        tape.drop(out)
        return hidden, held
    if spec.project_in is not None and not spec.project_in_last:
        narrow, out = out, linear(tape, out, spec.project_in, ctx)
        _keep_leaf(tape, narrow, ctx)
        tape.drop(narrow)
    if spec.position_rows and not spec.embedding_named:
        hidden = _normed_sum(tape, out, spec, ctx)
        if spec.project_in is not None and spec.project_in_last:
            narrow, hidden = hidden, linear(tape, hidden, spec.project_in, ctx)
            if spec.embedding_apart:
                return hidden, (narrow,)
            tape.drop(narrow)
        return hidden, ()
    if spec.position_rows:
        trains = ctx.full and not spec.positions_frozen
        rows = parameter(spec.position_rows * spec.summed_size, ctx.width, trains)
        own = spec.positions_counted and ctx.training
        counted = ctx.positions if spec.position_ids else ctx.queries
        positions = _positions(tape, rows, ctx.tokens if own else counted, spec, ctx)
        part = PASS if own else positions.size
        if spec.embedding_norm_first:
            before, out = out, norm(tape, out, spec.embedding_norm, ctx)
            _keep_leaf(tape, before, ctx)
            tape.drop(before)
        summed = tape.op(count, ctx.width, (out, positions), grads=(PASS, part))
        if spec.embedding_norm is not None and not spec.embedding_norm_first:
            before, summed = summed, norm(tape, summed, spec.embedding_norm, ctx)
            tape.drop(before)
        hidden = dropout(tape, summed, spec.embedding_dropout, ctx)
        tape.drop(summed)
        if spec.project_in is None and not spec.embedding_norm_first:
            _keep_leaf(tape, out, ctx)
        return hidden, (out, positions)
    if spec.fixed_positions:
        return _with_fixed_positions(tape, out, spec, ctx)
    if spec.embedding_cloned:
        copy = tape.op(count, out.width, (out,), grads=(PASS,))
        _keep_leaf(tape, out, ctx)
        tape.outside[EMBEDDED] = tape.alias(copy)
        return out, (copy,)
    if spec.embedding_multiplied:
        scaled = tape.op(count, ctx.width, (out,))
        _keep_leaf(tape, out, ctx)
        if spec.embedding_apart:
            return scaled, (out,)
        tape.drop(out)
        out = scaled
    if spec.embedding_norm is not None:
        hidden = norm(tape, out, spec.embedding_norm, ctx)
        _keep_leaf(tape, out, ctx)
        if spec.embedding_named:
            return hidden, (out,)
        tape.drop(out)
        return hidden, ()
    if spec.embedding_dropout and ctx.training:
        hidden = dropout(tape, out, spec.embedding_dropout, ctx)
        _keep_leaf(tape, out, ctx)
        if spec.embedding_held:
            return hidden, (out,)
        tape.drop(out)
        return hidden, ()
    return out, ()


def _token_inputs(tape: Tape, x: Tensor, spec: TokenTables, ctx: Context) -> Tensor:
    """Gemma 4's inputs of all layers, [B, Q, layers, features]; `x`, the embeddings, is borrowed.

    Source: transformers/models/gemma4/modeling_gemma4.py, `get_per_layer_inputs`,
    `project_per_layer_inputs`.
    """
    count = ctx.tokens * spec.features
    table = parameter(spec.rows * spec.features, ctx.outer_width, ctx.full)
    found = tape.op(count, ctx.outer_width, (table,), temporaries=_sort(ctx.tokens))
    looked_up = tape.op(count, ctx.width, (found,))
    tape.drop(found)
    projected = linear(tape, x, spec.projection, ctx)
    into = projected if spec.scaled_in_place else None
    scaled = tape.op(projected.count, projected.width, (projected,), into=into)
    tape.drop(projected)
    normed = norm(tape, scaled, spec.norm, ctx)
    tape.drop(scaled)
    both = add(tape, normed, looked_up)
    out = scale(tape, both)
    tape.drop(both, normed, looked_up)
    return out


def _normed_sum(tape: Tape, out: Tensor, spec: ModelSpec, ctx: Context) -> Tensor:
    """BERT's: tokens, their types and positions, a norm, a dropout; `out` is consumed.

    Source: transformers/models/bert/modeling_bert.py, `BertEmbeddings.forward`.
    """
    parts = [out]
    total = tape.alias(out)
    if spec.token_types:
        table = parameter(spec.token_types * spec.summed_size, ctx.width, ctx.full)
        types = tape.op(out.count, ctx.width, (table,), temporaries=_sort(ctx.tokens))
        parts.append(types)
        before, total = total, tape.op(out.count, out.width, (total, types), grads=(PASS, PASS))
        tape.drop(before)
    rows = parameter(spec.position_rows * spec.summed_size, ctx.width, ctx.full)
    own = spec.positions_counted and ctx.training
    positions = _positions(tape, rows, ctx.tokens if own else ctx.positions, spec, ctx)
    part = PASS if own else positions.size
    into = total if spec.sum_in_place else None
    before, total = (
        total,
        tape.op(out.count, out.width, (total, positions), grads=(PASS, part), into=into),
    )
    tape.drop(before)
    normed = norm(tape, total, spec.embedding_norm, ctx)
    tape.drop(total)
    hidden = dropout(tape, normed, spec.embedding_dropout, ctx)
    _keep_leaf(tape, out, ctx)
    tape.drop(normed, positions, *parts)
    return hidden


def _sort(indices: int) -> tuple[int, ...]:
    """What the backward pass of a look-up holds: more than 3072 indices are sorted first."""
    return (8 * indices, 8 * indices) if indices > 3072 else ()


def _with_fixed_positions(
    tape: Tape, out: Tensor, spec: ModelSpec, ctx: Context
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows of a computed table are added (XGLM); CTRL names them, and adds token types of 0."""
    rows = tape.new(ctx.positions * spec.hidden_size, ctx.width)
    summed = tape.op(out.count, out.width, (out,), grads=(PASS,))
    held: tuple[Tensor, ...] = (out,)
    if spec.fixed_positions_cast:
        held = (out, rows)
        before, summed = summed, tape.op(out.count, out.width, (summed,), grads=(PASS,))
        tape.drop(before)
    else:
        tape.drop(rows)
    hidden = dropout(tape, summed, spec.embedding_dropout, ctx)
    tape.drop(summed)
    _keep_leaf(tape, out, ctx)
    return hidden, held


def _with_input_grads(x: Tensor, ctx: Context) -> Tensor:
    """Adapters with checkpointing make the embeddings' output require grad.

    Source: PreTrainedModel.enable_input_require_grads.
    """
    if ctx.lora is not None and ctx.training and ctx.checkpointing:
        x.grad = True
    return x


def _positions(tape: Tape, rows: Tensor, count: int, spec: ModelSpec, ctx: Context) -> Tensor:
    """Look `count` positions up, which OPT counts from 2: the indices are saved."""
    indices = (8 * count,) if spec.position_offset else ()
    return tape.op(
        count * spec.summed_size, ctx.width, (rows,), temporaries=_sort(count), aux=indices
    )


def _keep_leaf(tape: Tape, x: Tensor, ctx: Context) -> None:
    """A leaf that requires grad lives as long as the graph: its AccumulateGrad node holds it."""
    if x.grad and not ctx.full and x.storage is not None:
        tape.pin(x)
