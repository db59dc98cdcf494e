"""generate's loop: it holds and passes what transformers' own generate does, on a real device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.generation import Generation
from profiler.trace.cuda_paths import as_on_cuda
from profiler.trace.modules import Modules
from profiler.trace.recorder import Recorder
from profiler.trace.timeline import Timeline

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
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "minimax": {"num_local_experts": 2, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "cpmant": {"dim_head": 16, "dim_ff": 32},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "mask_token_id": 3},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
STEPS = 5


def model_of(model_type: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **TYPES[model_type])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def case_of(model_type: str, **fields: Any) -> Case:
    model = {"model_type": model_type}
    return Case.from_dict({"model": model, "dtype": "float32", "max_new_tokens": STEPS, **fields})


@pytest.mark.parametrize("model_type", TYPES)
def test_the_tokens_are_those_of_transformers_generate(model_type: str) -> None:
    model = model_of(model_type)
    prompt = torch.randint(3, 50, (2, 7))
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
    )
    generation = Generation(model, case_of(model_type), prompt, torch.ones_like(prompt))
    with torch.no_grad():
        for _ in range(STEPS):
            generation.step()
    assert generation.input_ids.tolist() == expected.tolist()
    assert generation.mask.shape == expected.shape
    assert generation.cache is not None


def test_a_models_own_state_takes_no_other_cache() -> None:
    prompt = torch.randint(3, 50, (1, 4))
    case = case_of("rwkv", cache="static")
    with pytest.raises(UnsupportedError, match="state of its own"):
        Generation(model_of("rwkv"), case, prompt, torch.ones_like(prompt))


def test_experts_are_switched_for_decode_only() -> None:
    model = model_of("mixtral")
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.config._experts_implementation))
    # On a CPU generate leaves the experts as they are; elsewhere it switches.
    meta = model.to("meta", torch.bfloat16)
    prompt = torch.zeros((1, 4), dtype=torch.int64, device="meta")
    generation = Generation(meta, case_of("mixtral"), prompt, torch.ones_like(prompt))
    with as_on_cuda(), Recorder(Timeline(), 50, 0, Modules(meta)), torch.no_grad():
        for _ in range(3):
            generation.step()
    assert seen == ["grouped_mm", "batched_mm", "batched_mm"]
    assert model.config._experts_implementation == "grouped_mm"
