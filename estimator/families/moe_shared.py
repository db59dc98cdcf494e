"""GLM-4.5: partial rotary positions, dense first layers, a shared expert beside routed ones.

Source: transformers/models/glm4_moe/{modeling,configuration}_glm4_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.moe import QWEN_NAMES, attention_of, gated_mlp, layer_count, model_of
from estimator.families.reader import ConfigReader
from estimator.spec import Mlp, ModelSpec, Moe, Norm


def parse_glm4_moe(reader: ConfigReader) -> ModelSpec:
    """Glm4MoeForCausalLM: half of each head is rotated; norms of queries and keys are optional."""
    hidden = reader.size("hidden_size", default=4096)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 96, 8, qkv_bias=bias, rounded=True)
    head_dim = attention.head_dim
    attention = replace(
        attention,
        rotary_dim=reader.rotary_dim(head_dim, "partial_rotary_factor", 0.5),
        qk_norm=Norm("rms", head_dim) if reader.flag("use_qk_norm", False) else None,
    )
    blocks = grouped_blocks(reader, hidden, layer_count(reader, 46), 10944, 1408, 128, 1, 1, 1)
    spec = model_of(reader, hidden, 151552, [(attention, block) for block in blocks])
    return replace(spec, buffers=correction_biases(blocks))


def grouped_blocks(
    reader: ConfigReader,
    hidden: int,
    count: int,
    dense_width: int,
    width: int,
    experts: int,
    dense: int,
    groups: int,
    active_groups: int,
) -> list[Mlp | Moe]:
    """Return each layer's block: dense MLPs, then mixtures with a sigmoid router over groups.

    Arguments after `count` are the defaults of the fields that they are named after.
    """
    width = reader.size("moe_intermediate_size", default=width)
    shared = reader.size("n_shared_experts", default=1)
    groups = reader.size("n_group", default=groups)
    experts = reader.size("n_routed_experts", "num_local_experts", default=experts)
    reader.divided("n_routed_experts", experts, "n_group", groups)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=8),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid_groups",
        groups=groups,
        active_groups=reader.size("topk_group", default=active_groups),
        normed=reader.flag("norm_topk_prob", True),
        shared=gated_mlp(reader, hidden, width * shared, adaptable=False),
        adapter_names=QWEN_NAMES,
    )
    first = reader.count("first_k_dense_replace", dense)
    size = reader.size("intermediate_size", default=dense_width)
    block = gated_mlp(reader, hidden, size, adaptable=False)
    return [block if index < first else mixture for index in range(count)]


def correction_biases(blocks: list[Mlp | Moe]) -> tuple[int, ...]:
    """Return the bytes of each router's buffer that corrects its scores, fp32."""
    return tuple(4 * block.experts for block in blocks if isinstance(block, Moe))
