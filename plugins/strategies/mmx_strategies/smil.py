"""SMIL: absent features from weights of prototypes, features regularised, trained by meta-learning.

Source: Ma et al., "SMIL: Multimodal Learning with Severely Missing Modality" (AAAI 2021): its released code
for avMNIST, and the equations of the paper as others tell them. The two differ, so that both are here, as
`form`.
h_m is the summary token of modality m, M_n the K-means centres of h_n over the complete training rows, found
before the first step (K = 10, random_state 0). m is there and n is absent:

                 published                                       released (the default)
    stand-in     x_n = <w, M_n> / K, w ~ N(1, f(h_m)²)           x_n = M_n w / sum(w), w = softplus(W h_m)
    regulariser  u_n = x_n · softplus(r), r ~ N(g(h_m), s(h_m)²) u_n = x_n + softplus(R h_m + e), e ~ N(0, 1)
    which rows   all                                             those that lack something
    noise        in training                                     in training, where something really lacks
    outer loss   L(D_f; t*, p)                                   L(D_f; t*, p) + L(D_m; t)

D_f are complete rows and D_m the others; t* = t - a dL(D_m)/dt, one step, differentiated through; t is what
trains but for p, the strategy's own. In the release a complete row takes its outer loss as if it lacked the
modality, and what it has is a target: 0.01 · MSE(u, clean features).

Read this before calling a result SMIL's: the released code picks its best iteration on the test set; with the
paper's weights, of mean 1, every row has one and the same stand-in in evaluation, where there is no noise.

Ours [choice]: over several present m, stand-ins and regularisers are averaged; R and W for every ordered pair
of modalities; the division by K; of a complete row one modality, evenly drawn, is taken for absent (`lacks`
names it); one regulariser, on what enters the fusion, where the release has a second behind its hidden layer;
batches of D_f are the last `pairs` complete rows that came by, where the release draws them anew; the
optimiser is the sweep's AdamW. The inner step goes through `torch.func.functional_call`, so that the graph is
freed with each step, where the release keeps all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmx.contracts import (
    Batch,
    Filled,
    Modality,
    Model,
    Output,
    Presence,
    Procedure,
    Step,
    Strategy,
    Task,
    TokenMap,
    Tokens,
    first_token,
)
from mmx.errors import InputError
from mmx_strategies.complete_rows import Pairs
from mmx_strategies.hiding import hide_one_of_complete
from mmx_strategies.stand_in import mean_of_present

Form = Literal["published", "released"]
ONE = 0.5413
"""softplus(0.5413) = 1: a regulariser that multiplies starts at nothing [choice]."""


class Smil(Strategy):
    """Stand-ins from prototypes and regularised summary tokens; other tokens of what is there stay.

    `centres`: K. `align`: weight of the squared error to the clean features (released form). `lacks`: which
    modality a complete row is trained without (released form).
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        form: Form = "released",
        centres: int = 10,
        align: float = 0.01,
        lacks: str | None = None,
    ) -> None:
        super().__init__()
        if centres < 1 or align < 0:
            raise InputError(f"strategy 'smil': centres {centres} must be above 0, align {align} not below 0")
        if lacks is not None and lacks not in modalities:
            raise InputError(f"strategy 'smil': lacks '{lacks}' is no modality; there are {list(modalities)}")
        self.modalities, self.form, self.align, self.lacks = tuple(modalities), form, align, lacks
        self.uses_targets = form == "released"
        self.weigh, self.regularise = nn.ModuleDict(), nn.ModuleDict()
        several = self.modalities if len(self.modalities) > 1 else ()
        for n in several:
            self.register_buffer(f"centres_{n}", 0.02 * torch.randn(centres, width))
            others = [m for m in self.modalities if m != n]
            self.weigh[n] = nn.ModuleDict({m: nn.Linear(width, centres) for m in others})
            self.regularise[n] = nn.ModuleDict({m: self._regulariser(width) for m in self.modalities})

    def _regulariser(self, width: int) -> nn.Linear:
        """Make the map of one pair: to a number a feature, or to mean and spread of one."""
        if self.form == "released":
            return nn.Linear(width, width)
        linear = nn.Linear(width, 2 * width)
        with torch.no_grad():
            linear.bias.copy_(torch.cat([torch.full((width,), ONE), torch.full((width,), -3.0)]))
        return linear

    def prepare(self, encodings: Iterator[TokenMap]) -> None:
        """Find the centres of complete rows' features; of fewer rows than centres, repeat them."""
        if not self.weigh:
            return
        found: dict[Modality, list[Tensor]] = {m: [] for m in self.modalities}
        for tokens in encodings:
            summaries = {m: first_token(tokens[m]) for m in self.modalities}
            complete = torch.stack([there for _, there in summaries.values()]).all(dim=0)
            for m, (values, _) in summaries.items():
                found[m].append(values[complete].float().cpu())
        for m, parts in found.items():
            features = torch.cat(parts)
            if len(features):
                buffer = self.get_buffer(f"centres_{m}")
                buffer.copy_(_centres(features, len(buffer)))

    def hide(self, presence: Presence) -> Presence:
        """In the released form, take a modality of every complete row for absent."""
        if self.form != "released" or not self.weigh:
            return presence
        if self.lacks is None:
            return hide_one_of_complete(presence, self.modalities, 1.0)
        complete = torch.stack([presence[m] for m in self.modalities]).all(dim=0)
        return {m: there & ~complete if m == self.lacks else there for m, there in presence.items()}

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Put stand-ins in, regularise, and in training of the released form compare with clean features."""
        if not self.weigh:
            return Filled(tokens)
        own = {m: first_token(t)[0] for m, t in tokens.items()}
        complete = torch.stack([presence[m] for m in self.modalities]).all(dim=0)
        clean = None if targets is None else {m: first_token(targets[m]) for m in self.modalities}
        held = complete if clean is None else torch.stack([there for _, there in clean.values()]).all(dim=0)
        features = {n: self._feature(n, own, presence, complete, held) for n in self.modalities}
        filled = {n: _with_first(tokens[n], features[n]) for n in self.modalities}
        if clean is None or self.form != "released" or not self.align:
            return Filled(filled)
        return Filled(filled, {"align": self.align * _distance(features, clean, held & ~complete)})

    def _feature(
        self,
        n: Modality,
        own: Mapping[Modality, Tensor],
        presence: Presence,
        complete: Bool[Tensor, " batch"],
        held: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch width"]:
        """Give u_n of every row; `held`: the rows of which nothing really lacks."""
        others = cast(nn.ModuleDict, self.weigh[n])
        stands = {m: self._stand_in(n, linear(own[m])) for m, linear in others.items()}
        x = torch.where(presence[n][:, None], own[n], mean_of_present(stands, presence))
        maps = cast(nn.ModuleDict, self.regularise[n])
        changes = {m: self._change(linear(own[m]), held) for m, linear in maps.items()}
        change = mean_of_present(changes, presence)
        if self.form == "published":
            return x * change
        return torch.where(complete[:, None], x, x + change)

    def _stand_in(self, n: Modality, told: Float[Tensor, "batch centres"]) -> Float[Tensor, "batch width"]:
        """Mix the centres of n."""
        centres = self.get_buffer(f"centres_{n}").to(told)
        weights = F.softplus(told)
        if self.form == "released":
            return weights @ centres / weights.sum(dim=1, keepdim=True)
        noise = torch.randn_like(weights) if self.training else torch.zeros_like(weights)
        return (1 + weights * noise) @ centres / len(centres)

    def _change(self, told: Tensor, held: Bool[Tensor, " batch"]) -> Tensor:
        """Give what is added to a feature (released), or what it is multiplied with (published)."""
        if self.form == "published":
            mean, spread = told.chunk(2, dim=1)
            noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
            return F.softplus(mean + F.softplus(spread) * noise)
        noise = torch.randn_like(told) if self.training else torch.zeros_like(told)
        return F.softplus(told + torch.where(held[:, None], 0.0, noise))


class Meta(Procedure):
    """An inner step on the rows that lack something, an outer one on complete rows, through the inner one.

    The inner step is that of encoders, projectors and fusion; the strategy's own parameters take the outer
    one only. Losses are the task's plus the strategy's. Where a batch has no rows that lack something, or no
    complete row came by yet, it takes a plain step. It goes with every strategy and fusion.

    `form`: "released" adds the inner loss to the outer one, and lets `inner_rate` fall to a tenth every 1,000
    steps. `pairs`: how many complete rows an outer step has, at most.
    """

    def __init__(
        self, task: Task, form: Form = "released", inner_rate: float = 1e-3, pairs: int = 64
    ) -> None:
        if inner_rate <= 0 or pairs < 1:
            raise InputError(f"procedure 'smil': inner_rate {inner_rate} and pairs {pairs} must be above 0")
        self.task, self.form, self.inner_rate = task, form, inner_rate
        self.pairs = Pairs(pairs)
        self.taken = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Give the complete rows that came by last, and the count of steps."""
        return {"taken": torch.tensor(self.taken), **self.pairs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.taken = int(state["taken"])
        self.pairs.load_state_dict({n: t for n, t in state.items() if n != "taken"})

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        complete = torch.stack(list(batch.presence.values())).all(dim=0)
        if bool(complete.any()):
            self.pairs.add(batch.take(complete))
        full = self.pairs.batch(batch)
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            if full is None or bool(complete.all()):
                losses = self._losses(model(batch), batch)
            else:
                losses = self._both(model, batch.take(~complete), full)
        self.taken += 1
        yield Step(sum(losses.values(), start=losses["task"].new_zeros(())), losses)

    def _both(self, model: Model, part: Batch, full: Batch) -> dict[str, Tensor]:
        """Take the inner step and give the outer losses."""
        module = cast(nn.Module, model)
        inner = self._losses(model(part), part)
        loss = sum(inner.values(), start=inner["task"].new_zeros(()))
        fast = self._stepped(module, loss) if loss.requires_grad else {}
        losses = self._losses(cast(Output, functional_call(module, fast, (full,))), full)
        return {**losses, "inner": loss} if self.form == "released" else losses

    def _stepped(self, module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
        """Give what the loss moves, a step further."""
        theta = {
            n: p for n, p in module.named_parameters() if p.requires_grad and not n.startswith("strategy.")
        }
        if not theta:
            return {}
        fallen = 0.1 ** (self.taken // 1000) if self.form == "released" else 1.0
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
        moved = zip(theta.items(), slopes, strict=True)
        return {n: p - self.inner_rate * fallen * slope for (n, p), slope in moved if slope is not None}

    def _losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return {"task": self.task.loss(output.logits, batch.target), **output.losses}


def _centres(features: Float[Tensor, "rows width"], count: int) -> Float[Tensor, "centres width"]:
    """Give K-means centres; of fewer rows than centres, the rows, again and again."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    clusters = min(count, len(features))
    with threadpool_limits(1):  # sums in one order: the same centres whatever the machine is doing
        found = KMeans(clusters, n_init=10, random_state=0).fit(features.double().numpy()).cluster_centers_
    return torch.from_numpy(np.resize(found, (count, features.shape[1]))).float()


def _with_first(tokens: Tokens, first: Float[Tensor, "batch width"]) -> Tokens:
    """Put a feature in the first token's place, valid in every row."""
    values, valid = tokens
    seen = torch.ones(len(first), 1, dtype=torch.bool, device=first.device)
    return Tokens(
        torch.cat([first[:, None].to(values.dtype), values[:, 1:]], dim=1),
        torch.cat([seen, valid[:, 1:]], dim=1),
    )


def _distance(
    features: Mapping[Modality, Tensor],
    clean: Mapping[Modality, tuple[Tensor, Tensor]],
    rows: Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Give the mean squared error over all modalities' features, of some rows; 0 where there are none."""
    if not bool(rows.any()):
        return next(iter(features.values())).new_zeros(())
    apart = [(features[m][rows] - clean[m][0][rows]).square().mean() for m in features]
    return torch.stack(apart).mean()
