"""Feed-forward blocks: one MLP for all tokens, or a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.spec.linears import Linear, Norm


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward block: gated (`gate`, `up`, `down`) or plain (`up`, `down`).

    `fused_gate` is whether `up` makes the gate's and up's features side by side (Phi-3),
    `inner_norm` the norm in front of `down` (BitNet).
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    fused_gate: bool = False
    inner_norm: Norm | None = None
    cut_off: bool = False
    """Whether gates below a quantile are set to 0 (Gemma 3n)."""
    inner_dropout: float = 0.0
    """Dropout behind the activation (BART)."""
    adapter: tuple[Linear, ...] = ()
    """Two linears, through a narrow rank, that are added to a fused gate's and up's (Zamba 2)."""

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's: xIELU's two, and the inner norm's."""
        norm = self.inner_norm.shapes if self.inner_norm is not None else ()
        return (*norm, 1, 1) if self.activation == "xielu" else norm

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        own = (self.gate, self.up, *self.adapter, self.down)
        return tuple(linear for linear in own if linear is not None)


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of experts: `active` of `experts` gated MLPs of `width` features for each token.

    All experts of a layer are two stacked parameters (transformers 5), and the router is a
    parameter: [experts, hidden], [experts, 2 * width, hidden], [experts, hidden, width].
    """

    hidden: int
    width: int
    experts: int
    active: int
    activation: str
    router: str = "softmax"
    """How experts are chosen; a name of estimator/architecture/routers.py:

    - `softmax` over all, then the best (Mixtral); `softmax_fp32` of logits in fp32 and
      `softmax_groups` from the best groups of experts (DeepSeek-V2);
    - `top_softmax` over the best in fp32 (Granite), `top_softmax_cast` of the best, in fp32, and
      `top_sigmoid` of the best (Cohere 2), `top_softmax_half` in the model's dtype (gpt-oss);
    - `sigmoid` of each (MiniMax-M2), `sigmoid_linear` of a linear (AFMoE), `sigmoid_cast` of logits
      cast to fp32 (Laguna) and `sigmoid_fp32` of logits in fp32 (Hunyuan 3), all three divided by
      their sum out of place; `sigmoid_half` in the model's dtype (LFM2),
      `sigmoid_groups` from the best groups (DeepSeek-V3);
    - `sparse_mixer` (Phi-3.5-MoE); `corrected_softmax` chooses by scores plus a bias (ERNIE);
      `linear_softmax` of a linear in fp32 (HunYuan).
    """
    groups: int = 1
    active_groups: int = 1
    normed: bool = False
    """Whether the chosen scores are divided by their sum."""
    scores_fp32: bool = False
    """Whether the scores stay in fp32 (Mixtral), and with them the weighted outputs."""
    shared: Mlp | None = None
    """An expert that sees all tokens."""
    shared_order: str = "last"
    """When the shared expert runs: `first`, before the router (Qwen2-MoE), `between` router and
    experts (AFMoE), `last`, after the experts, or `outside`, once the block has returned
    (Granite)."""
    shared_flat: bool = False
    """Whether the shared expert sees tokens as rows, [B * Q, hidden]."""
    shared_sum: str = "plain"
    """How its output is added to the experts': `plain`, `scaled` once the experts' is multiplied by
    a number (Laguna), in `fp32` (Hunyuan 3), or `halved` afterwards (Cohere 2)."""
    shared_gate: Linear | None = None
    gate_style: str = "halves"
    """How the gate's and up's product is read: `halves`, or `clamped_pairs` (gpt-oss)."""
    biased: bool = False
    """Whether router and experts have biases."""
    jitter: bool = False
    """Whether training multiplies the input by noise, for the block and for its router."""
    router_name: str | None = None
    """The router's name where it is a linear of its own kind, which no adapter may wrap."""
    router_linear: Linear | None = None
    """The router where it is a linear like others (HunYuan)."""
    router_fp32: bool = False
    """Whether the router's weight stays in fp32, whatever the model's dtype."""
    logits_capped: bool = False
    """Whether a tanh caps the router's logits (Laguna)."""
    bias_frozen: bool = False
    """Whether what corrects the scores is a parameter that never trains, and no buffer."""
    gated: bool = True
    """Whether experts have gates: else two products with an activation between (Nemotron-H)."""
    latent: tuple[Linear, Linear] | None = None
    """Linears into and out of narrower features that the experts compute in, `hidden` of them
    (Nemotron 3); the router and the shared expert read what stands before."""
    looped: bool = False
    """Whether the model's code runs experts one after the other (LongCat)."""
    zero_experts: int = 0
    """Experts that hand tokens on as they are; `gate_up` has weights of theirs, all the same."""
    every: bool = False
    """Whether every expert computes every token, which scores then scale (Llama 4)."""
    norms: tuple[Norm, ...] = ()
    """Norms behind the MLP that runs beside the experts, before the experts and behind them, where
    router and experts read the residual (Gemma 4)."""
    adapter_names: tuple[str, ...] = ()
    """Module names that peft takes for the router, the gates, the ups and the downs of stacked
    experts; empty where it adapts none of them (peft/utils/transformers_weight_conversion.py)."""

    @property
    def up_features(self) -> int:
        """Features that the gate's and up's product has."""
        return 2 * self.width if self.gated else self.width

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        shared = self.shared.linears if self.shared is not None else ()
        beside = (*(self.latent or ()), self.shared_gate, self.router_linear)
        return (*shared, *(linear for linear in beside if linear is not None))

    @property
    def frozen(self) -> int:
        """Elements of a parameter that never trains."""
        return self.experts if self.bias_frozen else 0

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's."""
        names = ("router", "gate_up", "down")
        weights = tuple(self.stacked(name) for name in names[self.router_linear is not None :])
        features = (1, self.up_features, self.hidden) if self.biased else ()
        around = [size for norm in self.norms for size in norm.shapes]
        if self.norms:
            # The router's scales of its input and of the experts' scores.
            around += [self.hidden, self.experts]
        return (*weights, *(self.experts * count for count in features), *around)

    def stacked(self, name: str) -> int:
        """Return the elements of `router`, `gate_up` or `down`."""
        inner = {"router": 1, "gate_up": self.up_features, "down": self.width}[name]
        features = self.hidden
        if self.latent is not None and name == "router":
            features = self.latent[0].inputs
        count = self.experts + (self.zero_experts if name == "gate_up" else 0)
        return count * inner * features

    def adapted(self, targets: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return which of `router`, `gate_up` and `down` carry adapters for target modules."""
        if not self.adapter_names:
            return ()
        router, gate, up, down = self.adapter_names
        needs = {"router": (router,), "gate_up": (gate, up), "down": (down,)}
        if self.router_linear is not None:
            del needs["router"]
        if targets == "all-linear":
            return tuple(needs)
        return tuple(name for name, parts in needs.items() if set(parts) <= set(targets))

    def adapter_counts(self, name: str, r: int) -> tuple[int, int]:
        """Return the elements of A and B; the gates and ups share an adapter of twice the rank."""
        if name == "router":
            return r * self.hidden, self.experts * r
        rank = self.experts * r * (2 if name == "gate_up" else 1)
        inner = self.up_features if name == "gate_up" else self.width
        return rank * self.hidden, rank * inner
