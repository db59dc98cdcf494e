"""Formulas of mixtures of experts: the router, the experts, and experts that all tokens share.

Source: transformers/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}/modeling_*.py.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.dense_experts import dense_mixture
from estimator.architecture.experts import experts
from estimator.architecture.feed_forward import mlp
from estimator.architecture.parts import add, cast, linear, scale
from estimator.architecture.routers import route
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Mlp, Moe


def feed_forward(tape: Tape, x: Tensor, spec: Mlp | Moe | None, ctx: Context) -> Tensor:
    """Play an MLP or a mixture of experts on `x` ([B, Q, hidden], borrowed)."""
    assert spec is not None
    if not isinstance(spec, Moe):
        return mlp(tape, x, spec, ctx)
    return (dense_mixture if spec.every else mixture)(tape, x, spec, ctx)


def mixture(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Play the block on `x` ([B, Q, hidden], borrowed): [B, Q, hidden]."""
    if spec.jitter and ctx.training:
        once = _jittered(tape, x)
        x = _jittered(tape, once)
        tape.drop(once, x)
    rows = tape.view(x, x.count)
    shared = None
    if spec.shared is not None and spec.shared_order == "first":
        shared = mlp(tape, rows, spec.shared, ctx, viewed=not spec.shared_flat)
    held, scores = route(tape, rows, spec, ctx)
    if spec.shared is not None and spec.shared_order == "between":
        shared = mlp(tape, rows, spec.shared, ctx, viewed=not spec.shared_flat)
    out = _routed(tape, rows, scores, spec, ctx)
    routed = (*held, scores)
    if spec.shared_order == "outside":
        tape.drop(*routed)
        routed = ()
    before, out = out, _ready_for_sum(tape, out, spec)
    if spec.shared_sum == "scaled":
        tape.drop(before)
    if spec.shared is not None and shared is None:
        shared = mlp(tape, x, spec.shared, ctx, viewed=not spec.shared_flat)
    if shared is not None:
        out, own = _with_shared(tape, rows, out, shared, spec, ctx), out
        tape.drop(own, shared)
    if spec.shared_sum == "halved":
        total, out = out, scale(tape, out)
        tape.drop(total)
    if spec.shared_sum == "fp32":
        wide, out = out, cast(tape, out, x.width)
        tape.drop(wide, before)
    tape.drop(*routed, rows)
    return out


def _ready_for_sum(tape: Tape, out: Tensor, spec: Moe) -> Tensor:
    """The experts' output as the shared expert's is added to it; `out` is borrowed."""
    if spec.shared_sum == "scaled":
        return scale(tape, out)
    if spec.shared_sum == "fp32":
        return cast(tape, out, 4)
    return out


def _routed(tape: Tape, x: Tensor, scores: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """The experts' outputs, computed in narrower features where there is a latent."""
    if spec.latent is None:
        return experts(tape, x, scores, spec, ctx)
    into, out_of = spec.latent
    narrow = linear(tape, x, into, ctx, viewed=False)
    mixed = experts(tape, narrow, scores, spec, ctx)
    tape.drop(narrow)
    out = linear(tape, mixed, out_of, ctx, viewed=False)
    tape.drop(mixed)
    return out


def _jittered(tape: Tape, x: Tensor) -> Tensor:
    """`x *= noise`: in place; backward needs the noise."""
    noise = tape.new(x.count, x.width)
    out = tape.op(x.count, x.width, (x,), (noise,), into=x)
    tape.drop(noise)
    return out


def _with_shared(
    tape: Tape, x: Tensor, out: Tensor, shared: Tensor, spec: Moe, ctx: Context
) -> Tensor:
    """out + sigmoid(gate(x)) * shared, where the shared expert has a gate."""
    if spec.shared_sum == "fp32":
        wide = cast(tape, shared, 4)
        total = add(tape, out, wide)
        tape.drop(wide)
        return total
    if spec.shared_gate is None:
        return add(tape, out, shared)
    gate = linear(tape, x, spec.shared_gate, ctx, viewed=False)
    opened = tape.op(gate.count, gate.width, (gate,), saves_out=True)
    tape.drop(gate)
    temporaries = (shared.size,) if opened.grad else ()
    saves = tuple(t for t, other in ((opened, shared), (shared, opened)) if other.grad)
    product = tape.op(shared.count, shared.width, (opened, shared), saves, temporaries=temporaries)
    tape.drop(opened)
    result = add(tape, out, product)
    tape.drop(product)
    return result
