"""Formulas of the first open decoders and of Llama's rarer variants against the trace.

Sizes are small and vocabularies tiny, so that peaks are the layers' and not the loss's.
"""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from profiler.trace import trace_case

GPT = {"n_embd": 256, "n_head": 8, "n_layer": 3, "vocab_size": 500, "n_positions": 1024}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {
    "model_type": "falcon",
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "vocab_size": 500,
}
DROPPED = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt-sw3": {"model_type": "gpt-sw3", **GPT},
    "gptj": {"model_type": "gptj", **GPT, "rotary_dim": 16, **DROPPED},
    "codegen": {"model_type": "codegen", **GPT, "rotary_dim": 32},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "hidden_size": 256,
        "num_heads": 8,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "vocab_size": 500,
        "max_position_embeddings": 1024,
    },
    "bert": {"model_type": "bert", **SIZES},
    "bert, decoder": {"model_type": "bert", **SIZES, "is_decoder": True},
    "roberta": {"model_type": "roberta", **SIZES},
    "roberta-prelayernorm": {"model_type": "roberta-prelayernorm", **SIZES},
    "xlm-roberta-xl": {"model_type": "xlm-roberta-xl", **SIZES},
    "bert-generation": {"model_type": "bert-generation", **SIZES},
    "modernbert-decoder": {
        **SIZES,
        "model_type": "modernbert-decoder",
        "num_hidden_layers": 5,
        "cls_token_id": 3,
        "sep_token_id": 4,
    },
    "opt, as 350m": {
        **SIZES,
        "model_type": "opt",
        "ffn_dim": 512,
        "word_embed_proj_dim": 128,
        "do_layer_norm_before": False,
    },
    "xglm": {
        "model_type": "xglm",
        "d_model": 256,
        "attention_heads": 8,
        "num_layers": 3,
        "vocab_size": 500,
        "ffn_dim": 512,
    },
    "ctrl": {"model_type": "ctrl", **GPT, "dff": 512},
    "bloom": {
        "model_type": "bloom",
        "hidden_size": 256,
        "n_head": 8,
        "n_layer": 3,
        "vocab_size": 500,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
    },
    "mpt": {
        "model_type": "mpt",
        "d_model": 256,
        "n_heads": 8,
        "n_layers": 3,
        "vocab_size": 500,
        "max_seq_len": 1024,
    },
    "falcon, multi-query": FALCON,
    "falcon, grouped": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, by distance": {
        **FALCON,
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
        "bias": True,
        "attention_dropout": 0.1,
    },
    "jais2": {"model_type": "jais2", **SIZES},
    "hyperclovax": {"model_type": "hyperclovax", **SIZES},
    "bitnet": {"model_type": "bitnet", **SIZES},
    "nanochat": {"model_type": "nanochat", **SIZES},
}
BART = {
    "d_model": 256,
    "decoder_layers": 3,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 512,
    "vocab_size": 500,
    "activation_dropout": 0.1,
    "pad_token_id": 0,
}
FAMILIES |= {
    "bart": {"model_type": "bart", **BART},
    "mbart": {"model_type": "mbart", **BART},
    "plbart": {"model_type": "plbart", **BART},
}
FAMILIES |= {
    "blenderbot-small": {"model_type": "blenderbot-small", **BART},
    "pegasus": {"model_type": "pegasus", **BART},
    "marian": {"model_type": "marian", **BART},
    "electra": {"model_type": "electra", **SIZES, "embedding_size": 128},
    "electra, wide": {"model_type": "electra", **SIZES, "embedding_size": 256, "is_decoder": True},
    "megatron-bert": {"model_type": "megatron-bert", **SIZES},
    "rembert": {
        "model_type": "rembert",
        **SIZES,
        "input_embedding_size": 128,
        "output_embedding_size": 320,
    },
}
WITHOUT_CHECKPOINTING = ("ctrl",)
RUNS: dict[str, dict[str, Any]] = {
    "full": {"task": "training", "batch_size": 2, "sequence_length": 300},
    "full, checkpointing, eager": {
        "task": "training",
        "batch_size": 3,
        "sequence_length": 128,
        "gradient_checkpointing": True,
        "attention": "eager",
    },
    "LoRA, fp32": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "batch_size": 1,
        "sequence_length": 200,
    },
    "QLoRA, checkpointing": {
        "task": "training",
        "method": "lora",
        "quantization": "nf4",
        "batch_size": 2,
        "sequence_length": 256,
        "gradient_checkpointing": True,
    },
    "prefill": {"batch_size": 3, "sequence_length": 300, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    for name, run in RUNS.items():
        if run.get("gradient_checkpointing") and family in WITHOUT_CHECKPOINTING:
            continue
        case = Case.from_dict({"model": FAMILIES[family], **run})
        estimated, traced = estimate(case), trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.001
        ), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scores_of_xglm_are_named_while_softmax_is_cast(dtype: str) -> None:
    fields = {"dtype": dtype, "attention": "eager", "batch_size": 3, "sequence_length": 600}
    case = Case.from_dict({"model": FAMILIES["xglm"], **fields, "max_new_tokens": 2})
    estimated, traced = estimate(case), trace_case(case)
    assert traced.peak.requested_bytes is not None
    assert estimated.peak.requested_bytes == pytest.approx(traced.peak.requested_bytes, rel=0.02)
