"""Every field of a case as a flag, and the way from flags and files to cases.

Values stay text until `Case.from_dict` sees them, so that a wrong flag, a wrong line of a file
and a wrong entry of a suite are told in the same sentences.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from estimator.case import (
    ATTENTIONS,
    CACHES,
    DTYPES,
    LOSSES,
    METHODS,
    MIXED_PRECISIONS,
    QUANTIZATIONS,
    RECOMPUTE_GRANULARITIES,
    TASKS,
    Case,
)
from estimator.errors import CaseError, show_choices, show_value
from estimator.strict_json import MAX_JSON_BYTES, parse_json

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class CaseFlag:
    """A flag and the case field it sets; a dot stands between an object's name and its field."""

    field: str
    help: str
    kind: str = "text"
    names: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The name under which click hands the value over."""
        return "case_" + self.field.replace(".", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        """The spellings on the command line."""
        return self.names or ("--" + self.field.replace("_", "-"),)


CASE_FLAGS = (
    CaseFlag("task", show_choices(TASKS)),
    CaseFlag("dtype", f"weights as loaded: {show_choices(DTYPES)}"),
    CaseFlag("quantization", show_choices(QUANTIZATIONS)),
    CaseFlag("double_quantization", "quantize the scales of nf4 or fp4 too", "bool"),
    CaseFlag("prepare_kbit", "peft's prepare_model_for_kbit_training", "bool"),
    CaseFlag("batch_size", "sequences a step", "int", ("-b", "--batch-size")),
    CaseFlag("sequence_length", "tokens a sequence", "int", ("-s", "--sequence-length")),
    CaseFlag("max_new_tokens", "tokens to generate (inference)", "int"),
    CaseFlag("method", f"{show_choices(METHODS)}; lora: with adapters"),
    CaseFlag("lora.r", "rank of the adapters", "int", ("--lora-r",)),
    CaseFlag("lora.lora_alpha", "their scale", "int", ("--lora-alpha",)),
    CaseFlag("lora.lora_dropout", "their dropout", "float", ("--lora-dropout",)),
    CaseFlag(
        "lora.target_modules",
        "all-linear, or names with commas",
        "list",
        ("--lora-target-modules",),
    ),
    CaseFlag("lora.use_dora", "DoRA", "bool", ("--lora-use-dora", "--use-dora")),
    CaseFlag("mixed_precision", f"autocast: {show_choices(MIXED_PRECISIONS)}"),
    CaseFlag("optimizer", "a TrainingArguments optim name"),
    CaseFlag("momentum", "of sgd or rmsprop", "float"),
    CaseFlag("gradient_checkpointing", "recompute activations in backward", "bool"),
    CaseFlag("recompute_granularity", show_choices(RECOMPUTE_GRANULARITIES)),
    CaseFlag("gradient_accumulation_steps", "micro-batches a step", "int"),
    CaseFlag("parallelism.sp_size", "GPUs that share each sequence", "int", ("--sp-size",)),
    CaseFlag("attention", show_choices(ATTENTIONS)),
    CaseFlag("cache", f"KV cache: {show_choices(CACHES)}"),
    CaseFlag("keep_logits", "the loop holds outputs during backward", "bool"),
    CaseFlag("loss", f"training: {show_choices(LOSSES)}"),
    CaseFlag("stack", "preset of an older software stack"),
    CaseFlag("gpu", "a card of `gpumem gpus`"),
)


def case_options(command: Command) -> Command:
    """Add MODEL, every field of a case, `--case` and `--cases` to a command.

    The command receives them as keyword arguments; `read_case` and `read_cases` take those.
    """
    for flag in reversed(CASE_FLAGS):
        command = _case_option(flag)(command)
    command = click.option(
        "--cases",
        "cases_file",
        metavar="FILE",
        help="Many cases: JSON Lines (- is standard input); answers in order, one a line.",
    )(command)
    command = click.option(
        "--case", "case_file", metavar="FILE", help="One case: a JSON file; flags override it."
    )(command)
    return click.argument("model", required=False)(command)


def _case_option(flag: CaseFlag) -> Callable[[Command], Command]:
    if flag.kind == "bool":
        declaration = "/".join((flag.flags[0], "--no-" + flag.flags[0].removeprefix("--")))
        others = flag.flags[1:]
        return click.option(declaration, *others, flag.parameter, default=None, help=flag.help)
    metavar = {"int": "N", "float": "X"}.get(flag.kind, "NAME")
    return click.option(*flag.flags, flag.parameter, metavar=metavar, help=flag.help)


def read_case(options: dict[str, Any]) -> Case:
    """Return the one case that MODEL, `--case` and the flags describe.

    Raises:
        CaseError: when the file cannot be read, or the case is wrong.
        click.UsageError: when no model is named.
    """
    data: dict[str, Any] = {}
    if options["case_file"] is not None:
        data = _read_case_file(options["case_file"])
    given = _given(options)
    parts: dict[str, dict[str, Any]] = {}
    for key in [key for key in given if "." in key]:
        name, _, field = key.partition(".")
        parts.setdefault(name, {})[field] = given.pop(key)
    data = {**data, **given}
    for name, part in parts.items():
        base = data.get(name)
        data[name] = {**base, **part} if isinstance(base, dict) else part
    if "lora" in parts:
        data.setdefault("method", "lora")
    if "model" not in data and options["case_file"] is None:
        raise click.UsageError(
            "no model given: name one (`gpumem models` lists them), or give --case or --cases",
            click.get_current_context(silent=True),
        )
    return Case.from_dict(data)


@dataclass(frozen=True, slots=True)
class CaseLine:
    """One line of a `--cases` file: what it says, and the case or why it is none."""

    raw: Any
    case: Case | None
    error: CaseError | None


def read_cases(options: dict[str, Any]) -> Iterator[CaseLine]:
    """Read a `--cases` file line by line; blank lines are skipped.

    Raises:
        CaseError: when the file cannot be read.
        click.UsageError: when MODEL, `--case` or a flag of a case is given beside it.
    """
    others = [*_given(options), *(["case"] if options["case_file"] is not None else [])]
    if others:
        raise click.UsageError(
            f"--cases takes each case whole from its line: leave out {others[0]}",
            click.get_current_context(silent=True),
        )
    return _read_lines(options["cases_file"])


def _read_lines(name: str) -> Iterator[CaseLine]:
    what = "standard input" if name == "-" else f"cases {show_value(name, 200)}"
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _read_line(line, f"{what} line {number}")
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CaseError(f"{what} cannot be read: {reason}") from None


def _read_line(line: bytes, what: str) -> CaseLine:
    raw: Any = line.decode("utf-8", "replace").strip()[:200]
    try:
        raw = parse_json(line, what, CaseError)
        return CaseLine(raw, Case.from_dict(raw), None)
    except CaseError as error:
        return CaseLine(raw, None, error)


def _read_case_file(name: str) -> dict[str, Any]:
    what = f"case {show_value(name, 200)}"
    try:
        if name == "-":
            text = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
        else:
            with Path(name).open("rb") as stream:
                text = stream.read(MAX_JSON_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CaseError(f"{what} cannot be read: {reason}") from None
    data = parse_json(text, what, CaseError)
    if not isinstance(data, dict):
        raise CaseError(f"{what} is {show_value(data)}, but must be a JSON object")
    return data


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields whose flags were given, as JSON values."""
    given = {} if options["model"] is None else {"model": options["model"]}
    for flag in CASE_FLAGS:
        value = options[flag.parameter]
        if value is not None:
            given[flag.field] = _json_value(flag.kind, value)
    return given


def _json_value(kind: str, value: Any) -> Any:
    """Read a flag's text as the JSON value it means; what does not parse stays text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("none", "null"):
        return None
    if kind == "list":
        return value if value == "all-linear" else [part.strip() for part in value.split(",")]
    if kind == "int" and re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII):
        return int(value)
    if kind == "float":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def asked_quiet(ctx: click.Context, quiet: bool) -> bool:
    """Say whether -q was given, before the verb or after it."""
    return quiet or bool((ctx.find_root().obj or {}).get("quiet"))


def asked_verbose(ctx: click.Context, verbose: bool) -> bool:
    """Say whether -v was given, before the verb or after it."""
    return verbose or bool((ctx.find_root().obj or {}).get("verbose"))
