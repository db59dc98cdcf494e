"""`gpumem`: the command line. Each verb is a module of `app.commands`, imported when chosen."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

from estimator.errors import GpumemError

VERBS = {
    "estimate": "What a run needs, from formulas, phase by phase.",
    "fit": "What fits on a card, and what makes it fit.",
    "trace": "What a run needs, from the real libraries' code; no GPU.",
    "profile": "What a run does need, measured on this machine's GPU.",
    "run": "Run a suite of cases; resumable.",
    "compare": "Compare estimates and records, or records and records.",
    "calibrate": "Fit coefficients and intervals to measured runs.",
    "baseline": "Keep records under a name, to compare with later.",
    "history": "Cases over versions of libraries and drivers.",
    "report": "How wrong the estimates are, as one HTML file.",
    "suites": "List the suites and their cases.",
    "web": "The page: an estimate as one types, in a browser.",
    "models": "List the model catalogue.",
    "gpus": "List the cards and the memory they really have.",
    "doctor": "What is installed here, and what works.",
}
"""Verb to one-line help, in the order of `--help`: listing them imports none of them."""

INTERRUPTED = 130
BROKEN_PIPE = 141


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module; its command has the verb's name."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"app.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the ones that look like it."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            similar = difflib.get_close_matches(args[0][:50], VERBS, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise click.UsageError(f"there is no verb {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"gpumem {version('gpumem')}")
    except PackageNotFoundError:
        click.echo("gpumem (run from its source, not installed)")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    subcommand_metavar="VERB ...",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the answer only.")
@click.option("-v", "--verbose", is_flag=True, help="Print details too.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """How much GPU memory does this LLM run need?

    \b
    gpumem estimate Llama-3.2-1B --task training --gpu L4
    gpumem trace Llama-3.2-1B --task training --method lora
    gpumem run smoke -o results
    """
    ctx.obj = {"quiet": quiet, "verbose": verbose}
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every `GpumemError` ends here.

    Exit codes: 0 fine; 1 a finding; 2 wrong usage or input; 3 some cases failed; 4 no usable
    environment; 124 a worker's time ran out; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's stream may be another kind
            stream.reconfigure(errors="backslashreplace")
    completion = os.environ.get("_GPUMEM_COMPLETE")
    if completion:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "gpumem", "_GPUMEM_COMPLETE", completion)
    try:
        code = _invoke(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
        _discard_output()
    except OSError as error:
        code = GpumemError.exit_code
        what = "the answer" if error.filename is None else repr(error.filename)
        _complain(f"{what} cannot be read or written: {error.strerror or error}")
        _discard_output()
    return code


def _discard_output() -> None:
    """Send what is still buffered to nowhere: Python would try, and complain, at exit again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _invoke(arguments: list[str]) -> int:
    try:
        with cli.make_context("gpumem", arguments) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as request:
        return request.exit_code
    except GpumemError as error:
        _complain(str(error))
        return error.exit_code
    except click.ClickException as error:
        _complain(_usage_sentence(error))
        return error.exit_code if error.exit_code > 1 else 2
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    return 0


def _usage_sentence(error: click.ClickException) -> str:
    message = error.format_message().strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    if context is None or message.endswith(")"):
        return message
    return f"{message} (`{context.command_path} --help` shows the usage)"


def _complain(message: str) -> None:
    click.echo("gpumem: " + " ".join(message.split()), err=True)
