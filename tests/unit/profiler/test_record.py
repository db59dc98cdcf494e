"""Records: round trips, what is refused and in which words, ids."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.case import Case
from estimator.errors import RecordError
from estimator.report import Components, MemoryReport, Parameters, Peak, Phase
from profiler.environment import collect_environment
from profiler.provenance import Stopwatch, code_version
from profiler.record import Counts, MeasuredPhase, Measurement, OutOfMemory, Record

CASE = Case.from_dict(
    {"model": "openai-community/gpt2", "task": "training", "method": "lora", "dtype": "float16"}
)


def make_report(source: str = "trace", allocated_bytes: int = 3000) -> MemoryReport:
    return MemoryReport(
        source=source,
        case=CASE.to_dict(),
        parameters=Parameters(total=10, trainable=2),
        peak=Peak("backward", allocated_bytes - 100, allocated_bytes, 2**21, reason="the loss"),
        phases=(Phase("load", 1000, 1000), Phase("backward", allocated_bytes, 2000)),
        components=Components(weights_bytes=1000, activations_bytes=allocated_bytes - 1000),
        assumptions=("one line",),
    )


def make_record(source: str = "trace", allocated_bytes: int = 3000) -> Record:
    counts = Counts(requested_bytes=1, allocated_bytes=512, reserved_bytes=2**21)
    phase = MeasuredPhase(name="load", start=counts, peak=counts, end=counts)
    return Record.from_report(
        make_report(source, allocated_bytes),
        collect_environment(source),
        Stopwatch().provenance(repeat=2),
        Measurement(phases=(phase,), weights_source="random", steps=3, flags=("watch out",)),
    )


def test_a_record_reads_back_equal() -> None:
    record = make_record("cuda")
    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(record.to_json(indent=1)) == record
    assert record.report == make_report("cuda")
    assert (record.case_id, record.repeat, record.flags) == (CASE.case_id, 2, ("watch out",))


def test_a_record_has_the_shape_of_every_answer_and_three_fields_more() -> None:
    data = json.loads(make_record("cuda").to_json())
    answer = make_report("cuda").to_dict()
    assert {name: data[name] for name in answer} == json.loads(json.dumps(answer))
    assert data["status"] == "ok"
    assert len(data["environment"]["environment_id"]) == 12
    provenance = data["provenance"]
    assert provenance["code_version"] == code_version()[0]
    assert set(provenance) == {
        "code_version", "dirty", "started_at", "duration_seconds", "repeat"
    }  # fmt: skip
    assert provenance["started_at"].endswith("+00:00")


def test_a_failed_record_has_an_error_and_no_report() -> None:
    record = Record.failed(
        CASE,
        "cuda",
        "oom",
        "out of memory in backward",
        kind="OutOfMemoryError",
        exit_code=1,
        oom=OutOfMemory(phase="backward", asked_bytes=2**30),
    )
    assert Record.from_json(record.to_json()) == record
    assert record.report is None
    assert record.oom is not None
    assert record.oom.asked_bytes == 2**30
    assert (record.repeat, record.flags) == (1, ())


def test_the_id_follows_the_content() -> None:
    one = make_record()
    same = Record.model_validate(one)
    assert same.record_id == one.record_id
    assert len(one.record_id) == 16
    assert one.with_flags("x").record_id != one.record_id
    without = json.loads(one.to_json())
    del without["record_id"]
    assert Record.from_json(json.dumps(without)).record_id == one.record_id


@given(st.integers(1, 10**6))
def test_a_record_cut_anywhere_is_refused_as_cut_off(where: int) -> None:
    text = RECORD_TEXT[: where % (len(RECORD_TEXT) - 1) + 1]
    with pytest.raises(RecordError, match=f"the record is cut off after {len(text)} characters"):
        Record.from_json(text)


RECORD_TEXT = make_record().to_json(indent=1)


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(RECORD_TEXT) | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the record is empty"),
        ("  \n", "the record is empty"),
        ("[1]", "a record must be a JSON object, not [1]"),
        ("{}", "schema_version is None, but must be a whole number from 1"),
        ('{"a" 1}', "not JSON: Expecting ':' delimiter at line 1, column 6"),
        ("hello", "not JSON: Expecting value at line 1, column 1"),
        ("[" + "9" * 5000 + "]", "a number with thousands of digits"),
        ("[" * 100_000, "nested too deeply"),
        (edited(schema_version=True), "schema_version is True"),
        (edited(schema_version=2), "written by a newer gpumem (schema_version 2; this one reads"),
        (edited(status="great"), "status: input should be 'ok', 'oom', 'error' or 'timeout'"),
        (edited(source="architecture"), "source: input should be 'cuda' or 'trace'"),
        (edited(surprise=1), "surprise: extra inputs are not permitted"),
        (edited(peak=None), "status is ok, but parameters, peak or components are missing"),
        (edited(status="error"), "status is error, but there is no error"),
        (edited(phases=[{"name": "load"}]), "phases.0.peak_allocated_bytes: "),
        (RECORD_TEXT.replace("3000", "3000.5"), "should be a valid integer, not 3000.5"),
        (RECORD_TEXT.replace("3000", "NaN"), "the record holds NaN"),
        (edited(case={"model": "m", "momentum": math.inf}), "the record holds Infinity"),
    ],
)
def test_what_is_refused_gets_one_sentence(text: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        Record.from_json(text)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 250
    assert caught.value.exit_code == 2


def test_predictions_make_no_records() -> None:
    with pytest.raises(RecordError, match="'architecture' predicts"):
        Record.from_report(make_report("architecture"), None, None)
