"""What an older stack did otherwise, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, MemoryReport, estimate
from estimator.errors import UnsupportedError
from estimator.stacks import STACKS

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}
TOKENS, VOCABULARY = 2 * 256, 32000


def answer(stack: str | None, **changes: Any) -> MemoryReport:
    fields = {"model": LLAMA, "batch_size": 2, "sequence_length": 256, "max_new_tokens": 1}
    return estimate(Case.from_dict({**fields, "stack": stack, **changes}))


def test_every_layer_has_tables_of_all_positions() -> None:
    today, older = answer(None), answer("transformers-4.35")
    tables = 4 * 2 * 4096 * 128 * 2
    held = older.phases[0].end_allocated_bytes - today.phases[0].end_allocated_bytes
    assert held == tables


def test_a_forward_has_the_logits_of_all_tokens_twice() -> None:
    report = answer("transformers-4.35")
    # Blocks of this size end at whole 2 MiB.
    assert report.components.logits_bytes == pytest.approx(TOKENS * VOCABULARY * 6, rel=0.01)
    assert report.peak.instant == "the logits of all tokens"
    assert answer(None).components.logits_bytes < TOKENS * VOCABULARY


def test_the_cache_is_there_twice_in_decode() -> None:
    new = 2048
    report = answer("transformers-4.35", max_new_tokens=new)
    token = 2 * 2 * 4 * 1024 * 2
    assert report.peak.phase == "decode"
    held = 256 + new - 1
    assert report.components.kv_cache_bytes == pytest.approx(token * (2 * held - 1), rel=0.001)
    once = answer(None, max_new_tokens=new).components.kv_cache_bytes
    assert once == pytest.approx(token * held, rel=0.3)


def test_the_first_step_still_names_the_prompts_logits() -> None:
    report = answer("transformers-4.35", max_new_tokens=2)
    decode = report.phases[-1]
    assert decode.name == "decode"
    weights = report.phases[0].end_allocated_bytes
    assert decode.peak_allocated_bytes > weights + TOKENS * VOCABULARY * 4
    assert decode.end_allocated_bytes < weights + TOKENS * VOCABULARY * 4


def test_4_bit_products_in_fp32() -> None:
    changes = {"quantization": "fp4", "dtype": "float16"}
    narrow = answer("transformers-4.35", sequence_length=8, **changes)
    wide = answer("transformers-4.32-defaults", sequence_length=8, **changes)
    # Once as it was loaded and once in fp32, where it was there once; the block's rest is its own.
    grown = wide.components.temporaries_bytes - narrow.components.temporaries_bytes
    assert 0 <= grown - 4 * 1024 * 2816 < 2**21


def test_the_loss_copies_the_logits_without_their_last_position() -> None:
    changes = {"task": "training", "max_new_tokens": None}
    today, older = answer(None, **changes), answer("transformers-4.48", **changes)
    # The loss holds half-precision logits, their fp32 copy, the cut copy and the log-softmax.
    assert older.components.logits_bytes == pytest.approx(TOKENS * VOCABULARY * 14, rel=0.01)
    assert today.components.logits_bytes < older.components.logits_bytes
    one = answer("transformers-4.48", batch_size=1, sequence_length=512, **changes)
    assert one.components.logits_bytes < older.components.logits_bytes


def test_a_fused_loss_has_no_log_softmax() -> None:
    changes = {"task": "training", "max_new_tokens": None, "gradient_checkpointing": True}
    plain, fused = (answer(name, **changes) for name in ("transformers-4.48", "fms-fast-kernels"))
    forward = [
        next(phase.peak_allocated_bytes for phase in report.phases if phase.name == "forward")
        for report in (plain, fused)
    ]
    # The rest is the final norm's fp32 copy of its input, and of the labels' row numbers.
    saved = forward[0] - forward[1] - TOKENS * VOCABULARY * 4
    assert 0 < saved < 2 * TOKENS * 1024 * 4


def test_a_stack_without_a_formula_for_the_model_says_so() -> None:
    gpt2 = {"model_type": "gpt_bigcode", "n_embd": 512, "n_layer": 2, "n_head": 8}
    changes = {"model": gpt2, "task": "training", "max_new_tokens": None, "method": "lora"}
    with pytest.raises(UnsupportedError, match="gpumem trace"):
        answer("fms-acceleration", quantization="nf4", prepare_kbit=False, **changes)


def test_fp32_norms_need_autocast_before_a_head_in_half_precision() -> None:
    changes = {"task": "training", "max_new_tokens": None, "method": "lora", "quantization": "nf4"}
    with pytest.raises(UnsupportedError, match="without autocast"):
        answer("fms-acceleration", prepare_kbit=False, **changes)
    for more in ({"prepare_kbit": True}, {"prepare_kbit": False, "mixed_precision": "bf16"}):
        assert answer("fms-acceleration", **changes, **more).peak.allocated_bytes > 0


def test_the_answer_names_the_stack() -> None:
    lines = answer("transformers-4.35").assumptions
    assert any("transformers-4.35" in line for line in lines)


@pytest.mark.parametrize("name", STACKS)
def test_every_preset_has_a_source(name: str) -> None:
    assert STACKS[name].name == name
    assert STACKS[name].source
