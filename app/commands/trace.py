"""`gpumem trace`: the real libraries' code on meta tensors, without a GPU."""

from __future__ import annotations

from typing import Any

import click

from app.answers import answer, answer_options
from app.needs import check_model, need_torch
from app.options import case_options
from estimator.case import Case
from estimator.report import MemoryReport


@click.command()
@case_options
@answer_options
@click.pass_context
def trace(ctx: click.Context, /, **options: Any) -> None:
    """What a run needs, from the real libraries' code; no GPU.

    The model is built from its configuration on meta tensors, the run's loop is executed, and
    every allocation goes through a model of PyTorch's CUDA allocator. A traced figure is a
    simulation, never a measurement. MODEL is as in `gpumem estimate`.
    """
    answer(ctx, _trace, options)


def _trace(case: Case) -> MemoryReport:
    check_model(case)
    need_torch("trace")
    from profiler.trace import trace_case

    return trace_case(case)
