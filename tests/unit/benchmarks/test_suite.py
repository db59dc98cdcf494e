"""Suites: what a file may say, what it expands to, and every error's sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.case_ids import case_slug, model_slug
from benchmarks.run_settings import RunSettings
from benchmarks.suite import builtin_suites, load_suite, parse_suite
from benchmarks.suite_error import SuiteError
from estimator.case import Case

ONE = '[[case]]\nmodel = "openai-community/gpt2"\n'


def test_smoke_covers_what_it_promises() -> None:
    cases = [entry.case for entry in load_suite("smoke").cases]
    assert len(cases) >= 14
    assert len({case.model for case in cases}) >= 7
    for field, wanted in {
        "task": {"inference", "training"},
        "method": {"full", "lora"},
        "dtype": {"bfloat16", "float16", "float32"},
        "attention": {"sdpa", "eager"},
        "gradient_checkpointing": {True, False},
    }.items():
        assert {getattr(case, field) for case in cases} == wanted, field
    optimizers = {case.optimizer for case in cases if case.training}
    assert optimizers == {"adamw_torch", "adamw_torch_fused", "sgd"}


def test_every_builtin_suite_loads_under_its_own_name() -> None:
    assert "smoke" in builtin_suites()
    for name in builtin_suites():
        assert load_suite(name).name == name


def test_a_matrix_is_a_product_less_what_is_excluded() -> None:
    suite = parse_suite(
        """
        name = "m"
        [defaults]
        task = "training"
        [[matrix]]
        model = ["a/x", "a/y"]
        dtype = ["bfloat16", "float32"]
        optimizer = ["sgd", "adamw_torch"]
        exclude = [{ model = "a/y", dtype = "float32" }, { optimizer = ["sgd"], model = "a/x" }]
        """,
        "file",
    )
    assert [entry.id for entry in suite.cases] == [
        "x-full-bf16-adamw_torch-1x1024",
        "x-full-fp32-adamw_torch-1x1024",
        "y-full-bf16-sgd-1x1024",
        "y-full-bf16-adamw_torch-1x1024",
    ]
    assert suite.name == "m"
    assert all(entry.case.training for entry in suite.cases)


def test_null_is_written_as_text_because_toml_has_none() -> None:
    suite = parse_suite('[[case]]\nmodel = "gpt2"\nmixed_precision = "null"\n', "s")
    assert suite.cases[0].case.mixed_precision is None


def test_rules_add_up_to_how_a_case_is_measured() -> None:
    suite = parse_suite(
        """
        [[matrix]]
        model = "a/x"
        task = "training"
        batch_size = [1, 2, 3]
        [[run]]
        match = "1x1024 or 2x1024"
        repeats = 3
        trainer = true
        [[run]]
        match = "2x1024"
        alone = true
        repeats = 2
        """,
        "s",
    )
    assert [entry.settings for entry in suite.cases] == [
        RunSettings(repeats=3, trainer=True),
        RunSettings(repeats=3, trainer=True, alone=True),
        RunSettings(),
    ]


def test_a_case_may_name_itself() -> None:
    suite = parse_suite(ONE + 'id = "mine"\n', "s")
    assert suite.cases[0].id == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "is not valid TOML"),
        ("", "has no cases"),
        ("cases = 1", "unknown field 'cases'; did you mean case?"),
        ("name = 3\n" + ONE, "name is 3, but must be text"),
        ("defaults = 3\n" + ONE, "defaults must be a table"),
        ("case = 3", "case must be written as [[case]]"),
        ("[case]\nmodel='m'", "case must be written as [[case]]"),
        (ONE + "batch_size = 0", "case 1: batch_size is 0, but must be a whole number"),
        (ONE + ONE + "batch = 2", "case 2: unknown case field 'batch'; did you mean"),
        (ONE + "batch_size = [1, 2]", "case 1: batch_size is [1, 2]"),
        (ONE + 'id = "A b"', "case 1: id is 'A b'"),
        (ONE + ONE, "gpt2-infer-bf16-1x1024+128 is there twice"),
        (ONE + 'id="a"\n' + ONE + 'id="a"\nbatch_size=2', "two different cases have the id a"),
        (ONE + 'id="a"\n' + ONE + 'id="b"', "b is there twice (first as a)"),
        ('[[matrix]]\nmodel="m"\ndtype=[]', "matrix 1: dtype is an empty list"),
        ('[[matrix]]\nmodel="m"\nexclude=3', "matrix 1: exclude must be a list of tables"),
        ('[[matrix]]\nmodel="m"\nexclude=[{dtyp=1}]', "matrix 1: exclude names 'dtyp'"),
        ('[[matrix]]\nmodel="m"\nexclude=[{model="n"}]', "matches no combination"),
        ('[[matrix]]\nmodel="m"\ndtype=["int9"]', "matrix 1: dtype is 'int9'"),
        (ONE + "[[run]]", "run 1 asks for nothing: give repeats, alone, history, trainer"),
        (ONE + "[[run]]\nalone = true", "run 1: match is None, but must be an expression"),
        (ONE + "[[run]]\nmatch='(gpt2'\nalone=true", "run 1: match: -k '(gpt2' lacks a closing )"),
        (ONE + "[[run]]\nmatch='llama'\nalone=true", "run 1: match 'llama' matches no case"),
        (ONE + "[[run]]\nmatch='gpt2'\nalon=true", "unknown field 'alon'; did you mean alone?"),
        (ONE + "[[run]]\nmatch='gpt2'\nalone=1", "run 1: alone is 1, but must be true or false"),
        (ONE + "[[run]]\nmatch='gpt2'\nrepeats=0", "run 1: repeats is 0, but must be a whole"),
        (ONE + "[[run]]\nmatch='gpt2'\nrepeats=true", "run 1: repeats is True, but must be"),
        (ONE + "[[run]]\nmatch='gpt2'\ntrainer=true", "it cannot run gpt2-infer-bf16-1x1024+128"),
        (
            '[[matrix]]\nmodel="m"\n'
            f"batch_size={[*range(1, 400)]}\nsequence_length={[*range(1, 400)]}",
            "multiply to more than",
        ),
    ],
)
def test_a_bad_suite_says_which_suite_entry_and_field(text: str, said: str) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite(text, "mine")
    message = str(caught.value)
    assert message.startswith("suite 'mine'")
    assert said in message
    assert "\n" not in message


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"suite 'smok' is not one of .*did you mean smoke\?"):
        load_suite("smok")
    with pytest.raises(SuiteError, match="cannot be read: no such file"):
        load_suite(str(tmp_path / "none.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match="is not UTF-8"):
        load_suite(str(binary))


def test_a_suite_file_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ONE, encoding="utf-8")
    assert load_suite(str(path)).name == "mine"


FIELDS = {
    "task": ["inference", "training"],
    "dtype": ["bfloat16", "float16", "float32"],
    "quantization": [None, "int8", "nf4"],
    "batch_size": [1, 2],
    "sequence_length": [128, 1024],
    "method": ["full", "lora"],
    "optimizer": ["adamw_torch_fused", "sgd"],
    "gradient_checkpointing": [False, True],
    "attention": ["sdpa", "eager"],
    "mixed_precision": [None, "bf16"],
    "keep_logits": [False, True],
    "loss": ["standard", "liger", "chunked"],
    "momentum": [0, 0.9],
    "prepare_kbit": [True, False],
    "lora": [None, {"r": 8}, {"lora_alpha": 8}, {"use_dora": True}, {"target_modules": ["q", "v"]}],
    "gpu": [None, "H100"],
    "cache": ["dynamic", "static"],
    "gradient_accumulation_steps": [1, 4],
    "max_new_tokens": [128, 8],
}


def _valid(fields: dict[str, object]) -> Case | None:
    from estimator.errors import CaseError

    try:
        return Case.from_dict({"model": "openai-community/gpt2", **fields})
    except CaseError:
        return None


drawn_case = (
    st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in FIELDS.items()})
    .map(_valid)
    .filter(lambda case: case is not None)
)


@given(drawn_case, drawn_case)
def test_ids_tell_different_cases_apart_and_are_stable(first: Case, second: Case) -> None:
    assert (case_slug(first) == case_slug(second)) == (first == second)
    again = Case.from_dict(first.to_dict())
    assert case_slug(again) == case_slug(first)


@given(
    st.lists(st.sampled_from(FIELDS["dtype"]), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(1, 8192), min_size=1, max_size=5, unique=True),
)
def test_expansion_is_the_whole_product_in_order(
    dtypes: list[str], batches: list[int], lengths: list[int]
) -> None:
    text = (
        f'[[matrix]]\nmodel = "m/x"\ndtype = {dtypes}\n'
        f"batch_size = {batches}\nsequence_length = {lengths}\n"
    )
    suite = parse_suite(text, "s")
    shapes = [(e.case.dtype, e.case.batch_size, e.case.sequence_length) for e in suite.cases]
    assert shapes == list(itertools.product(dtypes, batches, lengths))
    assert len({entry.id for entry in suite.cases}) == len(suite.cases)


def test_a_configuration_object_is_told_apart_by_its_content() -> None:
    first = Case.from_dict({"model": {"model_type": "llama", "hidden_size": 8}})
    second = Case.from_dict({"model": {"model_type": "llama", "hidden_size": 16}})
    assert model_slug(first).startswith("llama-")
    assert model_slug(first) != model_slug(second)


@pytest.mark.parametrize(
    ("model", "slug"), [("a/B C", "b-c"), ("../../etc", "etc"), ("/", "model"), ("ä", "model")]
)
def test_a_model_slug_is_safe_in_a_file_name(model: str, slug: str) -> None:
    assert model_slug(Case.from_dict({"model": model})) == slug


@pytest.mark.parametrize(("name", "models"), [("inference", 10), ("training", 8), ("peft", 6)])
def test_the_suites_for_a_gpu_are_as_wide_as_they_say(name: str, models: int) -> None:
    suite = load_suite(name)
    assert len(suite.cases) >= 120
    assert len({entry.case.model_name for entry in suite.cases}) >= models
