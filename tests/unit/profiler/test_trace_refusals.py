"""A model's own failure is one sentence with a way out; ours stays what it is."""

from __future__ import annotations

import pytest

from estimator.case import Case
from estimator.errors import ModelError, UnsupportedError
from profiler.trace.refusals import refused

CASE = Case.from_dict({"model": {"model_type": "mamba"}, "task": "training"})
ADAPTERS = Case.from_dict({"model": {"model_type": "mamba"}, "task": "training", "method": "lora"})


def test_a_models_failure_names_it_and_the_version() -> None:
    with pytest.raises(UnsupportedError) as caught, refused(CASE, ()):
        # Raised in a library's frame, as a model's code would.
        __import__("json").loads("{")
    message = str(caught.value)
    assert message.startswith("mamba cannot be traced: its code fails with transformers ")
    assert "JSONDecodeError: Expecting property name" in message
    assert message.endswith("change its configuration or the version of transformers")
    assert "\n" not in message


def test_adapters_are_a_way_out_where_there_are_any() -> None:
    with pytest.raises(UnsupportedError, match="adapters' target_modules"), refused(ADAPTERS, ()):
        __import__("json").loads("{")


def test_a_failure_after_a_guess_may_be_the_guess() -> None:
    with pytest.raises(UnsupportedError) as caught, refused(CASE, ("masks are taken as full",)):
        __import__("json").loads("{")
    assert "depend on values" in str(caught.value)
    assert str(caught.value).endswith("measure it on a GPU with `gpumem profile`")


def test_a_long_message_is_cut_to_a_line() -> None:
    with pytest.raises(UnsupportedError) as caught, refused(CASE, ()):
        __import__("ast").literal_eval("print('" + "x" * 500 + "')\n")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_sentences_of_ours_pass() -> None:
    with pytest.raises(ModelError, match="as it was"), refused(CASE, ()):
        raise ModelError("as it was")


def test_a_bug_of_ours_is_not_called_the_models() -> None:
    from profiler.tensors import count_parameters

    with pytest.raises(AttributeError), refused(CASE, ()):
        count_parameters(None)
