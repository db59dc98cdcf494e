"""`Record`: what one run on a GPU, or one trace, came to; the file format of results/.

A record is a `MemoryReport` plus `status`, `environment` and `provenance`; where the run
failed, the report's fields are null and `error` says why. Predictions are never part of a
record: they are a function of the case and are computed again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from estimator.case import Case
from estimator.errors import RecordError, show_value
from estimator.report import (
    SCHEMA_VERSION,
    Components,
    Interval,
    MemoryReport,
    Parameters,
    Peak,
    Phase,
)
from profiler.environment import Environment

_NOT_NUMBERS = ("NaN", "Infinity")
"""What pydantic's JSON reader takes inside a case, and JSON has not."""

Source = Literal["cuda", "trace"]
Status = Literal["ok", "oom", "error", "timeout"]
Loop = Literal["own", "trainer"]
OWN_LOOP: Loop = "own"
TRAINER_LOOP: Loop = "trainer"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Provenance(_Model):
    """Who made a record: code version and whether it had local changes, when (UTC), how long."""

    code_version: str
    dirty: bool | None = None
    started_at: str
    duration_seconds: float
    repeat: int = 1


class RunError(_Model):
    """Why there is no report. `kind` is an exception's name, `exit`, `signal`, `timeout`,
    `no_answer` or `garbage`; `details` holds the last lines the worker wrote."""

    message: str
    kind: str
    exit_code: int | None = None
    signal: str | None = None
    details: str | None = None


class OutOfMemory(_Model):
    """Where the GPU ran out: the phase, the bytes that were asked for, what was free and held."""

    phase: str
    asked_bytes: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class Counts(_Model):
    """The allocator's three counters at one moment (docs/counters.md)."""

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class MeasuredPhase(_Model):
    """The counters at a phase's start and end, and the highest each of them was in between."""

    name: str
    start: Counts
    peak: Counts
    end: Counts


class Measurement(_Model):
    """What only a run on a GPU can tell, beside the report.

    `context_bytes` is what the driver shows above PyTorch's reserved bytes (CUDA context and
    other libraries); `driver_used_bytes` the whole device in use, every process of it.
    `share_bytes` is what the run might reserve while it shared the card with other cases, None
    where it had the card to itself. `flags` are sentences that tell why the figures may not be
    trusted.
    """

    phases: tuple[MeasuredPhase, ...] = ()
    allocator_retries: int = 0
    ooms: int = 0
    context_bytes: int | None = None
    driver_used_bytes: int | None = None
    device_total_bytes: int | None = None
    weights_source: Literal["random", "checkpoint"] | None = None
    steps: int | None = None
    share_bytes: int | None = None
    flags: tuple[str, ...] = ()


class Record(_Model):
    """One finished run of one case; immutable, and complete in itself.

    `status` is `ok` with a report, or `oom`, `error`, `timeout` with an `error`. `loop` is who
    played training's steps: our own loop, or transformers.Trainer as a check on it.
    """

    schema_version: int = SCHEMA_VERSION
    record_id: str = ""
    source: Source
    loop: Loop = OWN_LOOP
    status: Status
    case: dict[str, Any]
    parameters: Parameters | None = None
    peak: Peak | None = None
    phases: tuple[Phase, ...] = ()
    components: Components | None = None
    interval: Interval | None = None
    assumptions: tuple[str, ...] = ()
    error: RunError | None = None
    oom: OutOfMemory | None = None
    measurement: Measurement | None = None
    environment: Environment | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Record:
        reported = None not in (self.parameters, self.peak, self.components)
        if self.status == "ok" and not reported:
            raise ValueError("status is ok, but parameters, peak or components are missing")
        if self.status != "ok" and self.error is None:
            raise ValueError(f"status is {self.status}, but there is no error")
        return self

    @classmethod
    def from_report(
        cls,
        report: MemoryReport,
        environment: Environment | None,
        provenance: Provenance | None,
        measurement: Measurement | None = None,
        loop: Loop = OWN_LOOP,
    ) -> Record:
        """Return the record of a run that answered. `report.source` is `cuda` or `trace`."""
        return cls(
            source=_source(report.source),
            loop=loop,
            status="ok",
            case=report.case,
            parameters=report.parameters,
            peak=report.peak,
            phases=report.phases,
            components=report.components,
            interval=report.interval,
            assumptions=report.assumptions,
            measurement=measurement,
            environment=environment,
            provenance=provenance,
        )._sealed()

    @classmethod
    def failed(
        cls,
        case: Case,
        source: str,
        status: Literal["oom", "error", "timeout"],
        message: str,
        environment: Environment | None = None,
        provenance: Provenance | None = None,
        *,
        kind: str = "error",
        exit_code: int | None = None,
        signal: str | None = None,
        details: str | None = None,
        oom: OutOfMemory | None = None,
        measurement: Measurement | None = None,
        loop: Loop = OWN_LOOP,
    ) -> Record:
        """Return the record of a run without an answer; `message` is one sentence."""
        error = RunError(
            message=message, kind=kind, exit_code=exit_code, signal=signal, details=details
        )
        return cls(
            source=_source(source),
            loop=loop,
            status=status,
            case=case.to_dict(),
            error=error,
            oom=oom,
            measurement=measurement,
            environment=environment,
            provenance=provenance,
        )._sealed()

    @property
    def report(self) -> MemoryReport | None:
        """The report, or None where the run failed."""
        if self.parameters is None or self.peak is None or self.components is None:
            return None
        return MemoryReport(
            source=self.source,
            case=self.case,
            parameters=self.parameters,
            peak=self.peak,
            phases=self.phases,
            components=self.components,
            interval=self.interval,
            assumptions=self.assumptions,
        )

    @property
    def case_id(self) -> str:
        """The case's id today: fields added since the record was written have their defaults.

        Raises:
            CaseError: when the case is no longer a valid one.
        """
        return Case.from_dict(self.case).case_id

    @property
    def repeat(self) -> int:
        """Which repeat of the case this is, from 1."""
        return 1 if self.provenance is None else self.provenance.repeat

    @property
    def flags(self) -> tuple[str, ...]:
        """Why the figures may not be trusted, a sentence each; empty is good."""
        return () if self.measurement is None else self.measurement.flags

    def with_flags(self, *flags: str) -> Record:
        """Return a copy of a measured record with more flags."""
        measurement = self.measurement or Measurement()
        measurement = measurement.model_copy(update={"flags": (*measurement.flags, *flags)})
        return self.model_copy(update={"measurement": measurement})._sealed()

    def to_json(self, indent: int | None = None) -> str:
        """Return the record as JSON: one line, or indented for a file that people read."""
        return json.dumps(self.model_dump(mode="json"), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record of this or an older schema version.

        Raises:
            RecordError: cut off, not JSON, not a record, or from a newer version; one sentence.
        """
        try:
            # Parsed once: a folder holds thousands. What is wrong is looked for only if it is.
            record = cls.model_validate_json(text)
        except ValidationError as error:
            _check_version(_parse(text))
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise RecordError(
                f"not a gpumem record: {where}: {_lower_first(first['msg'])}"
                + ("" if first["type"] == "missing" else f", not {show_value(first['input'])}")
            ) from None
        if record.schema_version != SCHEMA_VERSION or any(word in text for word in _NOT_NUMBERS):
            _check_version(_parse(text))
        return record if record.record_id else record._sealed()

    def _sealed(self) -> Record:
        """Return a copy whose id is the hash of its content: equal id, equal record."""
        content = self.model_dump(mode="json", exclude={"record_id"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.model_copy(update={"record_id": digest})


def _source(name: str) -> Source:
    if name == "cuda":
        return "cuda"
    if name == "trace":
        return "trace"
    raise RecordError(f"source {name!r} predicts: only cuda and trace make records")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        whole = text.strip()
        if not whole:
            raise RecordError("the record is empty") from None
        if whole[0] == "{" and (whole[-1] != "}" or error.pos >= len(text.rstrip())):
            raise RecordError(f"the record is cut off after {len(text)} characters") from None
        raise RecordError(
            f"the record is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:
        raise RecordError("the record holds a number with thousands of digits") from None
    except RecursionError:
        raise RecordError("the record is not one of gpumem's: it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise RecordError(f"the record holds {name}, which is no size")


def _check_version(data: Any) -> None:
    if not isinstance(data, dict):
        raise RecordError(f"a record must be a JSON object, not {show_value(data)}")
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(
            f"not a gpumem record: schema_version is {show_value(version)}, "
            "but must be a whole number from 1"
        )
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"the record was written by a newer gpumem (schema_version {version}; this one reads "
            f"up to {SCHEMA_VERSION}): upgrade gpumem to read it"
        )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
