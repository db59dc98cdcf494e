"""An inference case is the model's own generate: as many tokens as asked, phases, the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler import loops
from profiler.generation import generate, replaced

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "minimax": {"num_local_experts": 2, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "bloom": {"n_layer": 2, "n_head": 2},
    "cpmant": {"dim_head": 16, "dim_ff": 32},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "mask_token_id": 3},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
STEPS = 5


class Diary:
    """Writes down what it hears and the caches that it is handed."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.caches: list[Any] = []

    def phase(self, name: str) -> None:
        self.heard.append(name)

    def step(self, index: int) -> None:
        self.heard.append(f"step {index}")


def model_of(model_type: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **TYPES[model_type])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def case_of(model_type: str, **fields: Any) -> Case:
    given = {"dtype": "float32", "batch_size": 2, "sequence_length": 7, "max_new_tokens": STEPS}
    return Case.from_dict({"model": {"model_type": model_type}, **given, **fields})


def play(model: Any, case: Case) -> tuple[Any, dict[str, Any], Diary]:
    batch = loops.make_batch(case, 50, "cpu")
    diary = Diary()
    return generate(model, batch, case, diary, diary.caches.append), batch, diary


@pytest.mark.parametrize("model_type", TYPES)
def test_the_tokens_are_those_of_transformers_generate(model_type: str) -> None:
    model = model_of(model_type)
    tokens, batch, diary = play(model, case_of(model_type))
    given = {**batch} if model_type not in ("xlnet",) else {"input_ids": batch["input_ids"]}
    expected = model_of(model_type).generate(
        **given,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
    )
    assert tokens.tolist() == expected.tolist()
    assert tokens.shape == (2, 7 + STEPS)
    assert diary.heard == ["step 0", "prefill", "decode"]


def test_a_run_of_one_token_has_no_decode() -> None:
    tokens, _, diary = play(model_of("llama"), case_of("llama", max_new_tokens=1))
    assert diary.heard == ["step 0", "prefill"]
    assert tokens.shape == (2, 8)


def test_nothing_ends_a_run_early() -> None:
    model = model_of("llama")
    expected, _, _ = play(model, case_of("llama"))
    first = int(expected[0, 7])
    model.generation_config = transformers.GenerationConfig(eos_token_id=first, do_sample=True)
    torch.manual_seed(0)
    assert play(model, case_of("llama"))[0].shape == (2, 7 + STEPS)


def test_the_cache_is_handed_over_after_each_forward_pass() -> None:
    _, _, diary = play(model_of("llama"), case_of("llama"))
    assert len(diary.caches) == STEPS
    assert len({id(cache) for cache in diary.caches}) == 1
    # The last token's keys are never needed.
    assert diary.caches[0].get_seq_length() == 7 + STEPS - 1
    _, _, diary = play(model_of("rwkv"), case_of("rwkv"))
    assert len(diary.caches) == STEPS


def test_a_static_cache_has_room_for_all_that_the_model_is_fed() -> None:
    _, _, diary = play(model_of("llama"), case_of("llama", cache="static"))
    assert isinstance(diary.caches[0], transformers.StaticCache)
    assert diary.caches[0].layers[0].keys.shape[-2] == 7 + STEPS - 1


def test_only_the_last_tokens_logits_are_made() -> None:
    model = model_of("llama")
    shapes: list[Any] = []
    model.register_forward_hook(lambda *args: shapes.append(tuple(args[2].logits.shape)))
    play(model, case_of("llama", max_new_tokens=2))
    assert shapes == [(2, 1, 50), (2, 1, 50)]


def test_autocast_is_around_each_forward_pass() -> None:
    model = model_of("llama")
    seen: list[Any] = []
    model.lm_head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    case = case_of("llama", mixed_precision="bf16", max_new_tokens=2)
    play(model, case)
    assert seen == [torch.bfloat16] * 2
    assert "forward" not in vars(model)


def test_a_models_own_state_takes_no_other_cache() -> None:
    with pytest.raises(UnsupportedError, match="state of its own"):
        play(model_of("rwkv"), case_of("rwkv", cache="static"))


def test_a_cache_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"cache 'paged'.*use dynamic, static or quantized"):
        play(model_of("llama"), case_of("llama", cache="paged"))


def test_replaced_methods_come_back_even_where_another_replaced_them_first() -> None:
    class Thing:
        def told(self) -> str:
            return "its own"

    thing = Thing()
    with replaced(thing, told=lambda: "outer"):
        with replaced(thing, told=lambda: "inner"):
            assert thing.told() == "inner"
        assert thing.told() == "outer"
    assert thing.told() == "its own"
    assert vars(thing) == {}
