"""What could be changed about a case to make it need less, and what each change costs.

A change is free where the run computes the same in the same time; cheap where it takes time or
rounds the optimizer's states; costly where the model, what it learns or what it sees becomes
another. `price` orders changes and sets of them; it is a rank and no quantity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from estimator.case import Case

FREE, CHEAP, COSTLY = "free", "cheap", "costly"


@dataclass(frozen=True, slots=True)
class Change:
    """Fields of a case with other values, what that costs and why."""

    fields: dict[str, Any]
    cost: str
    price: int
    why: str = field(compare=False)

    def applied(self, case: Case) -> Case:
        """Return the changed case.

        Raises:
            CaseError: the change is impossible for the case.
        """
        return Case.from_dict({**case.to_dict(), **self.fields})

    def joined(self, other: Change) -> Change | None:
        """Return both changes as one, or None where they contradict or repeat each other."""
        if any(self.fields.get(name, value) != value for name, value in other.fields.items()):
            return None
        fields = {**self.fields, **other.fields}
        if fields in (self.fields, other.fields):
            return None
        cost = max(self.cost, other.cost, key=(FREE, CHEAP, COSTLY).index)
        return Change(fields, cost, self.price + other.price, f"{self.why}; {other.why}")


def possible_changes(case: Case) -> Iterator[Change]:
    """Return the single changes that a case allows, the cheapest first."""
    yield from sorted([*_training(case), *_always(case)], key=lambda change: change.price)


def _training(case: Case) -> Iterator[Change]:
    if not case.training:
        return
    if case.keep_logits:
        yield Change(
            {"keep_logits": False}, FREE, 0, "the loop lets go of its outputs before backward"
        )
    if case.optimizer == "adamw_torch":
        yield Change(
            {"optimizer": "adamw_torch_fused"}, FREE, 0, "one kernel, without foreach's temporaries"
        )
    if case.loss == "standard" and case.stack is None and case.parallelism is None:
        others = {"keep_logits": False} if case.keep_logits else {}
        yield Change(
            {"loss": "liger", **others},
            FREE,
            2,
            "Liger's fused loss, without logits of the whole batch: needs liger-kernel",
        )
        yield Change(
            {"loss": "chunked", **others},
            CHEAP,
            9,
            "TRL's fused head: logits tile by tile, made once more in backward",
        )
    for parts in _divisors(case.batch_size):
        yield Change(
            {
                "batch_size": case.batch_size // parts,
                "gradient_accumulation_steps": case.gradient_accumulation_steps * parts,
            },
            CHEAP,
            10 + parts.bit_length(),
            f"{parts} smaller micro-batches, summed: the same step, less parallel",
        )
    if not case.gradient_checkpointing:
        yield Change(
            {"gradient_checkpointing": True}, CHEAP, 12, "one more forward pass for each backward"
        )
        if case.attention == "eager":
            yield Change(
                {"gradient_checkpointing": True, "recompute_granularity": "selective"},
                CHEAP,
                9,
                "the attention scores are computed twice, not kept",
            )
    elif case.recomputes_attention:
        yield Change(
            {"recompute_granularity": "full"}, CHEAP, 12, "one more forward pass for each backward"
        )
    if case.optimizer.startswith("adamw_torch"):
        yield Change(
            {"optimizer": "adamw_bnb_8bit"}, CHEAP, 14, "optimizer states rounded to 8 bits"
        )
        yield Change(
            {"optimizer": "paged_adamw_8bit"},
            CHEAP,
            16,
            "8-bit states in host memory where the card is full: slower",
        )
    if case.method == "full" and case.quantization is None:
        yield Change({"method": "lora"}, COSTLY, 100, "trains adapters instead of the model")
        yield Change(
            {"method": "lora", "quantization": "nf4"},
            COSTLY,
            170,
            "QLoRA: trains adapters on weights of 4 bits",
        )


def _always(case: Case) -> Iterator[Change]:
    if case.attention == "eager":
        yield Change({"attention": "sdpa"}, FREE, 0, "no S x S scores in memory")
    if not case.training:
        if case.batch_size > 1:
            yield Change(
                {"batch_size": -(-case.batch_size // 2)}, CHEAP, 11, "half the sequences at once"
            )
        if case.batch_size > 2:
            yield Change({"batch_size": 1}, CHEAP, 15, "one sequence after another")
        if case.cache == "dynamic":
            yield Change({"cache": "quantized"}, COSTLY, 110, "keys and values rounded to 4 bits")
    if case.quantization in ("nf4", "fp4") and not case.double_quantization:
        yield Change(
            {"double_quantization": True}, CHEAP, 13, "the scales of 4-bit weights rounded too"
        )
    if case.dtype == "float32" and case.mixed_precision is None:
        yield Change({"dtype": "bfloat16"}, COSTLY, 90, "weights and arithmetic in half precision")
    if case.quantization is None and not (case.training and case.method == "full"):
        yield Change({"quantization": "int8"}, COSTLY, 130, "weights rounded to 8 bits")
        yield Change({"quantization": "nf4"}, COSTLY, 150, "weights rounded to 4 bits")
    if case.local_length > 1:
        half = case.sp_size * -(-case.local_length // 2)
        yield Change({"sequence_length": half}, COSTLY, 120, "half the tokens seen")


def _divisors(batch_size: int) -> Iterator[int]:
    """Into how many micro-batches to split: two, and one sequence each."""
    if batch_size % 2 == 0 and batch_size > 2:
        yield 2
    if batch_size > 1:
        yield batch_size
