"""Model types whose parameters are counted though their memory has no formulas yet."""

from __future__ import annotations

from collections.abc import Callable

from estimator.families.counts_older import (
    count_gpt_neox_japanese,
    count_openai_gpt,
)
from estimator.families.counts_recurrent import (
    count_rwkv,
    count_xlstm,
)
from estimator.families.counts_seq2seq import count_decoder
from estimator.families.counts_sparse import (
    count_jetmoe,
)
from estimator.families.reader import ConfigReader

COUNTERS: dict[str, Callable[[ConfigReader], int]] = {
    "rwkv": count_rwkv,
    "xlstm": count_xlstm,
    "openai-gpt": count_openai_gpt,
    "gpt_neox_japanese": count_gpt_neox_japanese,
    "jetmoe": count_jetmoe,
    "mvp": count_decoder,
    "bigbird_pegasus": count_decoder,
    "trocr": count_decoder,
    "whisper": count_decoder,
}
"""Function by `model_type` that returns the number of parameters, tied ones once."""
