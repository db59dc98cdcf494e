"""`ModelSpec`: a model's architecture in the estimator's own words, read from its config.

A spec is made of the same parts for every family: linears, norms, attentions, MLPs, layers. The
modules in `estimator.families` translate each `model_type`'s configuration into it.
"""

from estimator.spec.altup import AltUp, StreamEnds
from estimator.spec.attention import Attention, HandedChoice, Indexer, Latent
from estimator.spec.linears import Linear, Norm
from estimator.spec.mixers import (
    DeltaNet,
    HeadScan,
    LinearRecurrence,
    Mixer,
    SelectiveScan,
    ShortConv,
    State,
    StateSpaceDual,
)
from estimator.spec.mlp import Mlp, Moe
from estimator.spec.model import (
    Doubled,
    HeadTransform,
    Layer,
    ModelSpec,
    Shared,
    TokenInputs,
    TokenTables,
)

__all__ = [
    "AltUp",
    "Attention",
    "DeltaNet",
    "Doubled",
    "HandedChoice",
    "HeadScan",
    "HeadTransform",
    "Indexer",
    "Latent",
    "Layer",
    "Linear",
    "LinearRecurrence",
    "Mixer",
    "Mlp",
    "ModelSpec",
    "Moe",
    "Norm",
    "SelectiveScan",
    "Shared",
    "ShortConv",
    "State",
    "StateSpaceDual",
    "StreamEnds",
    "TokenInputs",
    "TokenTables",
]
