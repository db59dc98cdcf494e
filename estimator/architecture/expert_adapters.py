"""Formulas of LoRA on stacked experts and on routers, which are parameters and no linears.

peft folds the adapter into the whole parameter at each forward: a second copy of all experts of a
layer, which backward needs, and a gradient of its size.

Source: peft/tuners/lora/layer.py, `ParamWrapper._activate_lora`, `get_delta_factors`,
`_LoraFactorsProxy`; torch/nn/utils/parametrize.py, `register_parametrization`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import add, cast, parameter, scale
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Moe

Factors = dict[str, tuple[Tensor, Tensor]]
"""The adapters' factors in the weights' dtype, for `gate_up` and `down` where they have one."""


def cast_factors(tape: Tape, spec: Moe, ctx: Context) -> Factors:
    """Return the factors of the experts' adapters, as they are cast before the experts run.

    The parametrization names them until the experts have returned.
    """
    found: Factors = {}
    if ctx.lora is None:
        return found
    adapted = spec.adapted(ctx.lora.target_modules)
    for name in ("down", "gate_up"):
        if name in adapted:
            left, right = (
                cast(tape, parameter(count, ctx.adapter_width, ctx.training), ctx.width)
                for count in spec.adapter_counts(name, ctx.lora.r)
            )
            # Registering computes the folded weight once, to check its shape.
            tape.drop(tape.new(spec.stacked(name), ctx.width))
            found[name] = (left, right)
    return found


def drop_factors(tape: Tape, factors: Factors) -> None:
    """The experts have returned: the parametrizations go."""
    for pair in factors.values():
        tape.drop(*pair)


def stacked_weight(tape: Tape, spec: Moe, name: str, ctx: Context, factors: Factors) -> Tensor:
    """Return the experts' weight `gate_up` or `down`, with its adapter folded in if it has one.

    baddbmm's backward multiplies each gradient by alpha, where that is not 1
    (tools/autograd/derivatives.yaml).
    """
    if name not in factors:
        return parameter(spec.stacked(name), ctx.width, ctx.full)
    pair = factors[name]
    assert ctx.lora is not None
    scaled = ctx.lora.lora_alpha != ctx.lora.r
    temporaries = (pair[1].size,) if scaled else ()
    return tape.op(spec.stacked(name), ctx.width, pair, pair, temporaries=temporaries)


def router_weight(tape: Tape, spec: Moe, ctx: Context, adapted: bool | None = None) -> Tensor:
    """Return the router's weight, [experts, hidden], with its adapter added if it has one.

    Args:
        adapted: whether it has one; None to ask the mixture, whose router is a parameter then.
    """
    width = 4 if spec.router_fp32 else ctx.width
    weight = parameter(spec.stacked("router"), width, ctx.full)
    if ctx.lora is None:
        return weight
    if not ("router" in spec.adapted(ctx.lora.target_modules) if adapted is None else adapted):
        return weight
    down, up = (
        parameter(count, ctx.adapter_width, ctx.training)
        for count in spec.adapter_counts("router", ctx.lora.r)
    )
    product = tape.op(weight.count, ctx.adapter_width, (up, down), (up, down))
    scaled = scale(tape, product)
    tape.drop(product)
    delta = cast(tape, scaled, width)
    tape.drop(scaled)
    tape.drop(tape.new(weight.count, width))
    folded = add(tape, delta, weight)
    tape.drop(delta)
    return folded
