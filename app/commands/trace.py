"""`gpumem trace`: the real libraries' code on meta tensors, without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from app.answers import answer, answer_options, show_answer, verbosity
from app.needs import check_model, need_torch
from app.options import case_options, read_case
from app.output import render_storages
from app.trace_files import TraceFiles
from app.verdict import Verdict, judge, judge_capacity
from estimator.case import Case
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES
from estimator.report import MemoryReport
from estimator.units import MIB

if TYPE_CHECKING:
    from profiler.trace import Trace
    from profiler.trace.capacity import Capacity

_MAX_CAPACITY_MIB = 2**31 - 1
SCRATCH_TERMS = (
    "embedding-sort",
    "index-sort",
    "flash-backward",
    "efficient-backward",
    "4bit-dequantized",
    "int8-outliers",
    "int8-product",
)
"""As in profiler.trace.scratch, which needs torch: a test keeps them equal."""

_ONE_CASE = ("timeline", "picture", "snapshot", "beside", "capacity_mib")
"""Options that make no sense for many cases."""


@click.command()
@case_options
@click.option("--timeline", metavar="FILE", help="Write bytes alive over the run there, as JSON.")
@click.option("--picture", metavar="FILE", help="Draw them: .png or .svg.")
@click.option("--snapshot", metavar="FILE", help="Write them for pytorch.org/memory_viz.")
@click.option(
    "--beside", metavar="FILE", help="Draw a measured run's snapshot below the traced one."
)
@click.option(
    "--capacity-mib",
    type=click.IntRange(1, _MAX_CAPACITY_MIB),
    metavar="N",
    help="Does it fit on a card of so many MiB?",
)
@click.option("--padded", is_flag=True, help="Sequences differ in length: a padding mask.")
@click.option(
    "--without-scratch",
    multiple=True,
    type=click.Choice(SCRATCH_TERMS),
    metavar="TERM",
    help="Leave a kernel's scratch out (may be repeated).",
)
@click.option("--expandable-segments", is_flag=True, help="The allocator's expandable_segments.")
@answer_options
@click.pass_context
def trace(ctx: click.Context, /, **options: Any) -> None:
    """What a run needs, from the real libraries' code; no GPU.

    The model is built from its configuration on meta tensors, the run's loop is executed, and
    every allocation goes through a model of PyTorch's CUDA allocator. A traced figure is a
    simulation, never a measurement. MODEL is as in `gpumem estimate`.

    With --check or --capacity-mib, the run is played again with no more memory than the card has.
    """
    settings = {
        "expandable": options["expandable_segments"],
        "padded": options["padded"],
        "without": options["without_scratch"],
    }
    if options["cases_file"] is not None:
        given = [name for name in _ONE_CASE if options[name] is not None]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise click.UsageError(f"{flag} is for one case, not for --cases", ctx)
        answer(ctx, lambda case: _trace(case, settings).report, options)
        return
    files = TraceFiles(
        options["timeline"], options["picture"], options["snapshot"], options["beside"]
    )
    files.check()
    case = read_case(options)
    if options["check"] and case.gpu is None and options["capacity_mib"] is None:
        raise click.UsageError("--check needs a card: give --gpu or --capacity-mib", ctx)
    traced = _trace(case, settings)
    files.write(traced)
    capacity = _capacity(traced, case, options)
    _, verbose = verbosity(ctx, options)
    show_answer(
        ctx,
        options,
        traced.report,
        _verdict(traced.report, case, capacity),
        details=render_storages(traced.replay.largest) if verbose else None,
        extra={} if capacity is None else {"capacity": capacity.to_dict()},
    )


def _trace(case: Case, settings: dict[str, Any]) -> Trace:
    check_model(case)
    need_torch("trace")
    from profiler.trace import trace_run

    return trace_run(case, **settings)


def _capacity(traced: Trace, case: Case, options: dict[str, Any]) -> Capacity | None:
    """Play the run on a card of limited memory, where that is asked for."""
    mib: int | None = options["capacity_mib"]
    if mib is None and not options["check"]:
        return None
    if mib is None:
        assert case.gpu is not None
        mib = find_gpu(case.gpu).memory_mib
    from profiler.trace.capacity import check_capacity

    return check_capacity(
        traced.timeline,
        memory_bytes=mib * MIB,
        context_low_bytes=CONTEXT_LOW_BYTES,
        context_high_bytes=CONTEXT_HIGH_BYTES,
        expandable=traced.expandable,
    )


def _verdict(report: MemoryReport, case: Case, capacity: Capacity | None) -> Verdict | None:
    gpu = None if case.gpu is None else find_gpu(case.gpu)
    if capacity is not None:
        same = gpu is not None and gpu.memory_bytes == capacity.memory_bytes
        return judge_capacity(capacity, gpu if same else None)
    return None if gpu is None else judge(report, gpu)
