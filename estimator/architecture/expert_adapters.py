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


def stacked_weight(tape: Tape, spec: Moe, name: str, ctx: Context) -> Tensor:
    """Return the experts' weight `gate_up` or `down`, with its adapter folded in if it has one."""
    weight = parameter(spec.stacked(name), ctx.width, ctx.full)
    if ctx.lora is None or name not in spec.adapted(ctx.lora.target_modules):
        return weight
    left, right = (
        cast(tape, parameter(count, ctx.adapter_width, ctx.training), ctx.width)
        for count in spec.adapter_counts(name, ctx.lora.r)
    )
    # Registering computes the folded weight once, to check its shape.
    tape.drop(tape.new(weight.count, ctx.width))
    folded = tape.op(weight.count, ctx.width, (left, right), (left, right))
    tape.drop(left, right)
    return folded


def router_weight(tape: Tape, spec: Moe, ctx: Context) -> Tensor:
    """Return the router's weight, [experts, hidden], with its adapter added if it has one."""
    width = 4 if spec.router_fp32 else ctx.width
    weight = parameter(spec.stacked("router"), width, ctx.full)
    if ctx.lora is None or "router" not in spec.adapted(ctx.lora.target_modules):
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
