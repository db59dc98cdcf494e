"""`gpumem run`: a suite of cases, measured or traced; resumable."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from app.options import asked_quiet
from estimator.errors import UnsupportedError
from estimator.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from benchmarks.plan import Plan, PlannedCase
    from benchmarks.runner import Limits, Outcome
    from benchmarks.store import RecordStore
    from profiler.record import Record

SOME_FAILED = 3


@click.command()
@click.argument("suite", metavar="SUITE")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the records (default: out/<suite>). What it holds is not run again.",
)
@click.option(
    "--source",
    type=click.Choice(["auto", "cuda", "trace"]),
    default="auto",
    help="cuda: measure on the GPU; trace: no GPU needed; auto (default): cuda if there is a GPU.",
)
@click.option("-k", "expression", metavar="EXPR", help="Only ids that match: 'lora and not gpt2'.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the cases.")
@click.option(
    "--rerun",
    type=click.Choice(["failed", "all"]),
    help="Also run cases whose record is an error or a timeout; or all of them once more.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would run and what it needs.")
@click.option(
    "--time-budget", metavar="TIME", help="Start nothing that would not end in 9m, 1h30m."
)
@click.option("--timeout", metavar="TIME", default="10m", help="Limit of one case (default: 10m).")
@click.option(
    "-j",
    "--jobs",
    metavar="N|auto",
    help="Cases at once: on a GPU packed by their estimates (default 1), traced up to 2; auto: as "
    "many as this machine serves.",
)
@click.option(
    "--loop",
    type=click.Choice(["own", "trainer"]),
    help="Who plays training's steps, instead of what the suite says (cuda only).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress to stderr.")
@click.option("-q", "--quiet", is_flag=True, help="No lines of progress, no summary.")
@click.pass_context
def run(ctx: click.Context, /, suite: str, output: Path | None, **options: Any) -> None:
    """Run the cases of a suite that are not recorded yet.

    SUITE is a name (`gpumem suites` lists them) or a TOML file. Each record is written the moment
    its case ends; run the same line again to go on after a stop. Exit code 3: some cases failed.
    """
    from benchmarks.machine import choose_source, parse_jobs
    from benchmarks.plan import FAILED, make_plan
    from benchmarks.progress import plan_lines, summary_lines
    from benchmarks.selection import parse_duration, select
    from benchmarks.store import RecordStore
    from benchmarks.suite import load_suite
    from profiler.environment import collect_environment
    from profiler.record import TRAINER_LOOP

    loaded = load_suite(suite)
    chosen = select(loaded.cases, options["expression"], options["shard"])
    timeout_s = parse_duration(options["timeout"], "--timeout")
    budget = options["time_budget"]
    budget_s = None if budget is None else parse_duration(budget, "--time-budget")
    dry, as_json = options["dry_run"], options["as_json"]
    # What would be measured can be asked anywhere.
    source = "cuda" if dry and options["source"] == "cuda" else choose_source(options["source"])
    jobs = parse_jobs(options["jobs"], source)
    if options["loop"] == TRAINER_LOOP and source != "cuda":
        raise UnsupportedError("--loop trainer measures on a GPU: a trace plays the own loop only")
    store = RecordStore(output or Path("out") / loaded.name)
    if not dry:
        store.prepare()
    plan = make_plan(
        loaded,
        chosen,
        source,
        collect_environment(source).environment_id,
        store.by_case() if store.folder.is_dir() else {},
        options["rerun"],
        options["loop"],
    )
    if dry:
        click.echo(_plan_json(plan, store) if as_json else "\n".join(plan_lines(plan)))
        return
    quiet = asked_quiet(ctx, options["quiet"])
    stream = sys.stderr if as_json else sys.stdout
    outcomes = _run(plan, store, _limits(source, jobs, timeout_s, budget_s), quiet, stream)
    if as_json:
        click.echo(_results_json(plan, store, outcomes))
    if not quiet:
        click.echo("\n".join(summary_lines(outcomes, store.folder)), file=stream)
    if any(outcome.record and outcome.record.status in FAILED for outcome in outcomes):
        ctx.exit(SOME_FAILED)


def _limits(source: str, jobs: int, timeout_s: float, budget_s: float | None) -> Limits:
    from benchmarks.machine import card_capacity_bytes, first_guess_s
    from benchmarks.runner import Limits

    return Limits(
        jobs=jobs,
        capacity_bytes=card_capacity_bytes() if source == "cuda" and jobs > 1 else None,
        timeout_s=timeout_s,
        time_budget_s=budget_s,
        first_guess_s=first_guess_s(source),
    )


def _run(
    plan: Plan, store: RecordStore, limits: Limits, quiet: bool, stream: TextIO
) -> list[Outcome]:
    """Run the plan with progress on `stream`; return what became of every chosen case."""
    from benchmarks.progress import progress
    from benchmarks.runner import Outcome, run_plan
    from profiler.workers import Worker

    before = [Outcome(planned, "recorded", planned.last) for planned in plan.done]
    if plan.done and not quiet:
        click.echo(f"{len(plan.done)} of {plan.total} cases are recorded already", file=stream)
    try:
        with progress(plan, stream, quiet) as show:
            outcomes = run_plan(
                plan, store, lambda: Worker(plan.source, limits.timeout_s), limits, show
            )
    except KeyboardInterrupt:
        click.echo(f"stopped: what is done is in {store.folder}; run again to go on", err=True)
        raise
    return before + outcomes


def _plan_json(plan: Plan, store: RecordStore) -> str:
    cases = [_case_row(planned, "recorded", planned.last) for planned in plan.done]
    cases += [_case_row(planned, "to run", planned.last) for planned in plan.to_run]
    return _document(plan, store, cases)


def _results_json(plan: Plan, store: RecordStore, outcomes: list[Outcome]) -> str:
    rows = [_case_row(outcome.planned, outcome.fate, outcome.record) for outcome in outcomes]
    return _document(plan, store, rows)


def _document(plan: Plan, store: RecordStore, cases: list[dict[str, Any]]) -> str:
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "suite": plan.suite,
            "source": plan.source,
            "folder": str(store.folder),
            "cases": cases,
        }
    )


def _case_row(planned: PlannedCase, fate: str, record: Record | None) -> dict[str, Any]:
    peak = None if record is None else record.peak
    error = None if record is None else record.error
    return {
        "id": planned.id,
        "case_id": planned.key.case_id,
        "fate": fate,
        "status": None if record is None else record.status,
        "record_id": None if record is None else record.record_id,
        "peak_allocated_bytes": None if peak is None else peak.allocated_bytes,
        "estimated_peak_allocated_bytes": planned.peak_bytes,
        "loop": planned.key.loop,
        "repeat": planned.repeats + (1 if fate == "to run" else 0),
        "error": None if error is None else {"message": error.message},
    }
