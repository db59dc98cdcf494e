"""`gpumem profile`: one run, measured on this machine's GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.answers import FINDING, SOME_FAILED, answer_cases, verbosity
from app.needs import check_model, need_cuda, need_torch
from app.options import case_options, read_case
from app.output import headline, render_report, wrap
from estimator.case import Case
from estimator.errors import UnsupportedError, WorkerTimeout
from estimator.units import format_both

if TYPE_CHECKING:
    from benchmarks.store import RecordStore
    from profiler.record import Record


@click.command()
@case_options
@click.option("-o", "--output", metavar="DIR", help="Store the record in this folder too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    metavar="SECONDS",
    help="Time limit of a case (default 600).",
)
@click.option("--snapshot", metavar="FILE", help="Write PyTorch's allocation history there.")
@click.option(
    "--loop",
    type=click.Choice(["own", "trainer"]),
    default="own",
    help="Who plays training's steps: our own loop (default), or transformers.Trainer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record (see docs/json.md).")
@click.option("--check", is_flag=True, help="Exit code 1 if the GPU ran out of memory.")
@click.option("-q", "--quiet", is_flag=True, help="The headline only.")
@click.option("-v", "--verbose", is_flag=True, help="Every component, bytes, the case.")
@click.pass_context
def profile(ctx: click.Context, /, output: str | None, check: bool, **options: Any) -> None:
    """What a run does need, measured on this machine's GPU.

    The case runs in a process of its own, with PyTorch's own counters. Running out of memory is
    a result too. Exit code 4 without a CUDA GPU; 3 where the run failed; 124 where its time ran
    out. MODEL is as in `gpumem estimate`; a folder with safetensors is loaded, else the weights
    are random.
    """
    if options["cases_file"] is not None:
        if check or options["snapshot"] is not None:
            raise click.UsageError("--check and --snapshot are for one case, not for --cases", ctx)
        answer_cases(ctx, lambda case: _as_json(_measure(case, output, options)), options)
        return
    record = _measure(read_case(options), output, options)
    if options["as_json"]:
        click.echo(record.to_json())
    else:
        _show(record, *verbosity(ctx, options))
    if record.error is not None and record.status == "timeout":
        raise WorkerTimeout(record.error.message)
    if record.error is not None and record.status == "error":
        click.echo(f"gpumem: {record.error.message}", err=True)
        ctx.exit(SOME_FAILED)
    if record.status == "oom" and check:
        ctx.exit(FINDING)


def _measure(case: Case, output: str | None, options: dict[str, Any]) -> Record:
    from benchmarks.run_settings import trainer_runs
    from profiler.record import TRAINER_LOOP
    from profiler.requests import HowToRun
    from profiler.workers import Worker

    check_model(case)
    if options["loop"] == TRAINER_LOOP and not trainer_runs(case):
        raise UnsupportedError(
            "Trainer trains, keeps no logits and has no chunked loss: leave out --loop for those"
        )
    need_torch("profile")
    need_cuda()
    store = None if output is None else _open_store(output)
    snapshot = None if options["snapshot"] is None else Path(options["snapshot"])
    how = HowToRun(loop=options["loop"], snapshot=snapshot)
    with Worker("cuda", options["timeout"]) as worker:
        record = worker.run(case, how=how)
    if store is not None:
        _keep(record, case, store)
    return record


def _open_store(folder: str) -> RecordStore:
    """Return the store, once it has proved that it can be written: before anything is run."""
    from benchmarks.store import RecordStore

    store = RecordStore(folder)
    store.prepare()
    return store


def _keep(record: Record, case: Case, store: RecordStore) -> None:
    from benchmarks.store import CaseKey
    from profiler.environment import collect_environment

    environment = record.environment or collect_environment(record.source)
    store.write(
        record, CaseKey(case.case_id, record.source, environment.environment_id, record.loop)
    )


def _as_json(record: Record) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(record.to_json())
    return data


def _show(record: Record, quiet: bool, verbose: bool) -> None:
    report = record.report
    if report is not None:
        click.echo(wrap(headline(report)) if quiet else render_report(report, verbose))
    elif record.oom is not None:
        asked = record.oom.asked_bytes
        size = "" if asked is None else f", which asked for {format_both(asked)}"
        click.echo(wrap(f"out of GPU memory in {record.oom.phase}{size}"))
    for flag in record.flags:
        click.echo(wrap(f"careful: {flag}"))
