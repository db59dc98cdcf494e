"""How a verb answers: one case as text or JSON, or a file of cases as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from app.options import asked_quiet, asked_verbose, read_case, read_cases
from app.output import headline, render_report, wrap
from app.verdict import Verdict, judge
from estimator.case import Case
from estimator.errors import CaseError, EnvironmentUnavailable, GpumemError
from estimator.gpus import find_gpu
from estimator.report import MemoryReport

SOME_FAILED = 3
FINDING = 1

Answer = Callable[[Case], MemoryReport]


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `--check`, `-q` and `-v` to a command."""
    verbose = click.option(
        "-v", "--verbose", is_flag=True, help="Every component, bytes, the case."
    )
    quiet = click.option("-q", "--quiet", is_flag=True, help="The headline only.")
    check = click.option("--check", is_flag=True, help="Exit code 1 if it does not fit --gpu.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/json.md).")
    return as_json(check(quiet(verbose(command))))


def answer(ctx: click.Context, answer_case: Answer, options: dict[str, Any]) -> None:
    """Answer what the options of `case_options` and `answer_options` ask for.

    Exits with 1 where `--check` finds that a case does not fit, and as `answer_cases` does.
    """
    if options["cases_file"] is not None:
        if options["check"]:
            raise click.UsageError("--check is for one case, not for --cases", ctx)
        answer_cases(ctx, lambda case: answer_case(case).to_dict(), options)
        return
    case = read_case(options)
    if options["check"] and case.gpu is None:
        raise click.UsageError("--check needs a card: give --gpu (`gpumem gpus` lists them)", ctx)
    report = answer_case(case)
    verdict = None if case.gpu is None else judge(report, find_gpu(case.gpu))
    show_answer(ctx, options, report, verdict)


def show_answer(
    ctx: click.Context,
    options: dict[str, Any],
    report: MemoryReport,
    verdict: Verdict | None,
    details: str | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Print a report as text or JSON; exit with 1 where `--check` finds that it does not fit.

    Args:
        details: a paragraph for people, after the report.
        extra: more keys of the JSON object.
    """
    if options["as_json"]:
        click.echo(json.dumps({**report.to_dict(), **(extra or {})}))
    else:
        quiet, verbose = verbosity(ctx, options)
        click.echo(wrap(headline(report)) if quiet else render_report(report, verbose))
        if details is not None and not quiet:
            click.echo(details)
        if verdict is not None:
            click.echo(wrap(verdict.sentence))
    if options["check"] and verdict is not None and verdict.state == "does not fit":
        ctx.exit(FINDING)


def answer_cases(
    ctx: click.Context, answer_case: Callable[[Case], dict[str, Any]], options: dict[str, Any]
) -> None:
    """Answer a `--cases` file: one JSON object a line, in order, an error in its case's place.

    Exits with 3 if some cases failed.

    Raises:
        CaseError: when no line at all could be read as a case (after all lines are answered).
        EnvironmentUnavailable: when this machine can answer no case.
    """
    read = failed = 0
    for line in read_cases(options):
        error: GpumemError | None = line.error
        if line.case is not None:
            read += 1
            try:
                result = answer_case(line.case)
                failed += result.get("status") in ("error", "timeout")
            except EnvironmentUnavailable:
                raise  # no other case could be answered either
            except GpumemError as problem:
                error = problem
        if error is not None:
            failed += 1
            result = {"case": line.raw, "error": {"message": str(error)}}
        click.echo(json.dumps(result))
    if not read:
        name = options["cases_file"]
        shown = "standard input" if name == "-" else repr(name)
        raise CaseError(f"no line of {shown} could be read as a case")
    if failed:
        ctx.exit(SOME_FAILED)


def verbosity(ctx: click.Context, options: dict[str, Any]) -> tuple[bool, bool]:
    """Return (quiet, verbose): given before the verb or after it."""
    return asked_quiet(ctx, options["quiet"]), asked_verbose(ctx, options["verbose"])
