"""Formulas of layers that share an attention and an MLP, in front of a mixer of their own (Zamba).

The shared blocks read the hidden states and the embeddings side by side, so that all such layers
add to the embeddings' gradient: it begins as a view of the last one's, and is summed from then on.

Source: transformers/models/zamba2/modeling_zamba2.py, `Zamba2HybridLayer.forward`,
`Zamba2AttentionDecoderLayer.forward`; zamba.
"""

from __future__ import annotations

from estimator.architecture.attentions import self_attention
from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.outside import EMBEDDED
from estimator.architecture.parts import add, linear
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Layer, ModelSpec


def shared_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """The shared blocks, a linear, and the mixer, whose input alone they are added to."""
    assert spec.shared is not None
    assert spec.beside is not None
    fed = _shared_blocks(tape, x, spec, ctx)
    brought = linear(tape, fed, spec.shared.linear, ctx)
    tape.drop(fed)
    if tape.discard:
        # The mixer is checkpointed once more, and keeps what it is given by name.
        _keep(tape, brought)
    both = add(tape, x, brought)
    normed = norm(tape, both, spec.shared.norm, ctx)
    tape.drop(both)
    mixed, _ = self_attention(tape, normed, spec.beside, ctx)
    tape.drop(normed)
    out = add(tape, x, mixed)
    tape.drop(mixed, brought)
    return out


def _keep(tape: Tape, x: Tensor) -> None:
    assert x.storage is not None
    x.storage.saved = True
    tape.arguments.append(tape.alias(x))


def _shared_blocks(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    embedded = tape.outside[EMBEDDED]
    count, width = x.count + embedded.count, max(x.width, embedded.width)
    # Gradients are views of the joined one.
    joined = tape.op(count, width, (x, embedded), grads=(PASS, PASS), viewed=True)
    normed = norm(tape, joined, spec.input_norm, ctx)
    tape.drop(joined)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    tape.drop(normed)
    normed = norm(tape, attended, spec.post_norm, ctx)
    tape.drop(attended)
    out = feed_forward(tape, normed, spec.mlp, ctx)
    tape.drop(normed, probabilities)
    return out


def is_viewed(layer: Layer) -> bool:
    """Whether the embeddings' gradient of the layers behind is a view of one layer's."""
    return layer.shared is not None and layer.shared.readers == 1


def gradient_of_copy(spec: ModelSpec, copy: Tensor) -> dict[int, Storage]:
    """Return what reached the embeddings' copy once all layers' backward is done."""
    readers = sum(layer.shared is not None for layer in spec.layers)
    if not readers:
        return {}
    return {id(copy): Storage(copy.size * (2 if readers == 1 else 1), None)}
