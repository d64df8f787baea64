"""All-stage: what is absent is reconstructed and guides what is there; the pattern makes some of the weights.

Source: Zhao et al., "Dealing with All-stage Missing Modality: Towards A Universal Model with Robust
Reconstruction and Personalization" (arXiv 2406.01987, brain tumours), of which only the abstract and the
first page could be read: no equation, weight or code was found. Facts: modalities are missing in training and
in test; (a) a multimodal masked autoencoder reconstructs missing modalities and masked patches together, and
a distribution approximation gives a signal for those that have no ground truth; (b) the reconstructed
complete input guides the learning from the incomplete one (data-model co-distillation); (c) a hyper-network
driven by CLIP makes part of the parameters depend on the pattern of what is missing. Facts of its nearest
ancestor M3AE (AAAI 2023, released code): k ~ U{0, …, M−1} of a row's modalities are dropped as a whole; a
learned input stands where something is masked.

With x_m the tokens of m's encoder, A what a row has, S what is left of it, p the tokens that are masked or
dropped, and x̂ = D_m(transformer([x or L_m, + position + E_m])):

    L_rec = mean over p of (x̂ − x)²,                                 where x is known                    (1)
    L_dist = Σ over m ∉ A of mean (μ(x̂_m) − μ_m)² + mean (σ(x̂_m) − σ_m)²                                (2)
    L_co = MSE(f_s, f_t) + T² KL(softmax(z_t / T) ‖ softmax(z_s / T))                                    (3)
    h = (1 + γ_m(S)) x + β_m(S),    (γ, β) = MLP(e(S))                                                   (4)
    L = CE(z_s, y) + CE(z_t, y) + L_co + 1.0 · L_rec + 0.1 · L_dist                                      (5)

The student s reads what is there (x_m, m ∈ S), the teacher t the reconstructions too; they share all weights.

Ours [choice, each]: all of (1) to (5), after notes that fill the paper's gaps, in one stage of training; the
autoencoder works on the encoders' tokens and masks half of them, where M3AE masks 87.5 % of the patches; x in
(1) is without gradient, and so are x̂ where the fusion reads it and the teacher in (3); (2) has the moments of
each channel over all tokens, against running ones of the training rows that have m; the decoder D_m is
linear; positions are sines, as many as the longest input in training had; (4) acts on all tokens that the
fusion gets, and starts at nothing; e(S) is no CLIP, but a hashed bag of the words, and pairs of words, of
"image present, audio absent", or vectors of the user's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.contracts import (
    Batch,
    Filled,
    Logits,
    Modality,
    Model,
    Presence,
    Procedure,
    Step,
    Strategy,
    Task,
    TokenMap,
    Tokens,
    restrict,
)
from mmx.errors import InputError
from mmx.tasks import SingleLabel
from mmx.transformer import Transformer
from mmx_strategies.hiding import keep_some
from mmx_strategies.hyper_network import HyperNetwork, pattern_embeddings
from mmx_strategies.watched import watched


class AllStage(Strategy):
    """Reconstruct the tokens of absent modalities, and scale and shift all by the pattern: (1), (2), (4).

    In training the fusion reads what is there and the reconstructions (`co_distillation` lets it read the
    first alone too). In evaluation `answers` says which: "completed", or "observed" alone.

    Switches, for ablation: `drop: false` hides no modality in training; `mask_rate` is the share of tokens
    that are masked; `reconstruction`, the weight of (1), at 0 takes the autoencoder away, so that nothing
    stands in; `distribution` is the weight of (2); `hyper`: e(S) from "text", a learned "table" with a row a
    pattern, or "none": without (4). `depth`, `heads`: of the autoencoder's transformer. `momentum`: of the
    running moments.

    `embeddings`: a safetensors file with a vector for each pattern instead of hashed words, by the names of
    what is present in the dataset's order: `image`, `audio`, `image+audio`. It is read where the model is
    built, so it must stay where it is.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        width: int,
        depth: int = 1,
        heads: int = 4,
        drop: bool = True,
        mask_rate: float = 0.5,
        reconstruction: float = 1.0,
        distribution: float = 0.1,
        momentum: float = 0.05,
        hyper: Literal["text", "table", "none"] = "text",
        embeddings: str | None = None,
        answers: Literal["completed", "observed"] = "completed",
    ) -> None:
        super().__init__()
        if reconstruction < 0 or distribution < 0 or not 0 <= mask_rate < 1:
            raise InputError(
                f"strategy 'all_stage': reconstruction {reconstruction} and distribution {distribution} must "
                f"not be negative, and mask_rate {mask_rate} at least 0 and below 1"
            )
        if depth < 1 or heads < 1 or width % heads:
            raise InputError(
                f"strategy 'all_stage': depth {depth} and heads {heads} must be at least 1, and heads divide "
                f"the width of {width}"
            )
        if embeddings is not None and hyper != "text":
            raise InputError(f"strategy 'all_stage': embeddings '{embeddings}' need hyper: text, not {hyper}")
        self.modalities = tuple(modalities)
        self.drop, self.mask_rate = drop, mask_rate
        self.reconstruction, self.distribution = reconstruction, distribution
        self.answers = answers
        self.visible = nn.Identity()
        """Is given who is present (modalities, batch), for whoever watches."""
        learns = reconstruction > 0 and (mask_rate > 0 or len(self.modalities) > 1)
        self.uses_targets = learns
        self.autoencoder = TokenAutoencoder(self.modalities, width, depth, heads) if learns else None
        self.moments = nn.ModuleDict({m: Moments(width, momentum) for m in modalities if learns})
        self.hyper = None
        if hyper != "none":
            table = None if hyper == "table" else pattern_embeddings(self.modalities, embeddings)
            self.hyper = HyperNetwork(self.modalities, width, table)

    def hide(self, presence: Presence) -> Presence:
        """Drop k ~ U{0, …, a−1} of the a modalities that a row has, evenly chosen."""
        return keep_some(presence, self.modalities) if self.drop else presence

    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Reconstruct, in training learn to, and modulate."""
        self.visible(torch.stack([presence[m] for m in self.modalities]))
        losses: dict[str, Tensor] = {}
        filled = dict(tokens)
        if self.autoencoder is not None and (self.training or self.answers == "completed"):
            self._learn_moments(targets)
            found = self.autoencoder(tokens, presence, self.mask_rate if targets is not None else 0.0)
            filled = {m: part.completed() for m, part in found.items()}
            if targets is not None:
                losses = self._losses(found, targets)
        if self.hyper is not None:
            filled = self.hyper(filled, presence)
        return Filled(filled, losses)

    def _learn_moments(self, targets: TokenMap | None) -> None:
        for m, (values, valid) in (targets or {}).items():
            if bool(valid.any()):
                cast(Moments, self.moments[m]).learn(values[valid])
                cast(TokenAutoencoder, self.autoencoder).count(m, valid)

    def _losses(self, found: Mapping[Modality, "Slots"], targets: TokenMap) -> dict[str, Tensor]:
        """Give (1) and (2)."""
        errors, apart = [], []
        for m, part in found.items():
            truth, known = _padded(targets[m], part.values.shape[1])
            asked = known & (part.masked | part.wanted)
            errors.append((part.rebuilt[asked] - truth[asked].detach()).float().square().mean(dim=1))
            lacking = part.wanted & ~known.any(dim=1, keepdim=True)
            moments = cast(Moments, self.moments[m])
            if bool(lacking.any()) and moments.known():
                apart.append(moments.distance(part.rebuilt[lacking]))
        error = torch.cat(errors)
        losses = {"reconstruction": self.reconstruction * error.sum() / max(1, len(error))}
        if self.distribution:
            far = torch.stack(apart).sum() if apart else error.new_zeros(())
            losses["distribution"] = self.distribution * far
        return losses


class Slots(NamedTuple):
    """A modality's places in the autoencoder: tokens that are there, and those that are asked for."""

    values: Float[Tensor, "batch tokens width"]
    seen: Bool[Tensor, "batch tokens"]
    """Tokens that are there."""
    wanted: Bool[Tensor, "batch tokens"]
    """Tokens of an absent modality."""
    masked: Bool[Tensor, "batch tokens"]
    """Tokens that are there, and are kept from the autoencoder."""
    rebuilt: Float[Tensor, "batch tokens width"]
    """Its answer; of use where one of the last two holds."""

    def completed(self) -> Tokens:
        """Put what is rebuilt where a modality is absent; no gradient of the task passes it."""
        rebuilt = self.rebuilt.detach().to(self.values.dtype)
        values = torch.where(self.seen[:, :, None], self.values, rebuilt)
        valid = self.seen | self.wanted
        return Tokens(torch.where(valid[:, :, None], values, 0.0), valid)


class TokenAutoencoder(nn.Module):
    """All modalities' tokens, a learned one where there is none, through a transformer and a linear map."""

    def __init__(self, modalities: Sequence[Modality], width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.substitute = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.embedding = nn.ParameterDict({m: torch.randn(width) * 0.02 for m in modalities})
        self.transformer = Transformer(width, depth, heads)
        self.decoders = nn.ModuleDict({m: nn.Linear(width, width) for m in modalities})
        for m in modalities:
            self.register_buffer(f"count_{m}", torch.ones((), dtype=torch.long))

    @torch.no_grad()
    def count(self, m: Modality, valid: Bool[Tensor, "batch tokens"]) -> None:
        """Take note of how many tokens a modality can have."""
        known = self.get_buffer(f"count_{m}")
        known.clamp_(min=int(valid.any(dim=0).nonzero().max()) + 1)

    def forward(self, tokens: TokenMap, presence: Presence, mask_rate: float) -> dict[Modality, Slots]:
        """Rebuild what is absent and, of what is there, a share that is masked; each row keeps a token."""
        own = {m: _padded(t, int(self.get_buffer(f"count_{m}"))) for m, t in tokens.items()}
        wanted = {m: self._wanted(m, t, presence[m]) for m, t in own.items()}
        lengths = [t.values.shape[1] for t in own.values()]
        seen = torch.cat([t.valid for t in own.values()], dim=1)
        masked = dict(zip(own, _mask(seen, mask_rate).split(lengths, dim=1), strict=True))
        inside = torch.cat([self._enter(m, t, masked[m]) for m, t in own.items()], dim=1)
        valid = seen | torch.cat(list(wanted.values()), dim=1)
        # A row that nothing is known of must not be without keys; all it gets is its own substitutes.
        mixed = self.transformer(inside, valid | ~valid.any(dim=1, keepdim=True)).split(lengths, dim=1)
        return {
            m: Slots(t.values, t.valid, wanted[m], masked[m], self.decoders[m](part))
            for (m, t), part in zip(own.items(), mixed, strict=True)
        }

    def _wanted(self, m: Modality, tokens: Tokens, present: Tensor) -> Bool[Tensor, "batch tokens"]:
        places = torch.arange(tokens.values.shape[1], device=present.device)
        return ~present[:, None] & (places < self.get_buffer(f"count_{m}"))

    def _enter(self, m: Modality, tokens: Tokens, masked: Tensor) -> Float[Tensor, "batch tokens width"]:
        shown = (tokens.valid & ~masked)[:, :, None]
        values = torch.where(shown, tokens.values, self.substitute[m])
        return values + self.embedding[m] + _sines(values)


class Moments(nn.Module):
    """Running mean and standard deviation of a modality's tokens, channel by channel."""

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def learn(self, values: Float[Tensor, "tokens width"]) -> None:
        """Move towards some tokens; what is still missing for the start at zero is kept in `weight`."""
        self.mean.lerp_(values.float().mean(dim=0), self.momentum)
        self.square.lerp_(values.float().square().mean(dim=0), self.momentum)
        self.weight.lerp_(torch.ones_like(self.weight), self.momentum)

    def known(self) -> bool:
        """Tell whether there was anything to learn from yet."""
        return bool(self.weight > 0)

    def distance(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, ""]:
        """Give (2) of one modality."""
        mean = self.mean / self.weight
        deviation = (self.square / self.weight - mean.square()).clamp(min=0).sqrt()
        found = values.float()
        spread = (found.var(dim=0, unbiased=False) + 1e-6).sqrt()  # the root has no slope at zero
        return (found.mean(dim=0) - mean).square().mean() + (spread - deviation).square().mean()


class CoDistillation(Procedure):
    """One step a batch: the completed input teaches the observed one, by (5).

    The model's own pass is the teacher's. The student's is the same fusion over the tokens of what is there,
    once the strategy has hidden some. f is what enters the fusion's head, where there is one head that all
    goes through at once; for tasks without classes (3) has the squared error of the logits.

    Beside `all_stage` it takes strategies that hide nothing and give no prompts: what stands in there is the
    teacher's alone. `weight`: of the second term of (3), `features` of the first; `temperature`: T.
    """

    def __init__(
        self, task: Task, weight: float = 1.0, features: float = 1.0, temperature: float = 2.0
    ) -> None:
        if weight < 0 or features < 0 or temperature <= 0:
            raise InputError(
                f"procedure 'co_distillation': weight {weight} and features {features} must not be negative, "
                f"and temperature {temperature} must be above 0"
            )
        self.task = task
        self.weight, self.features, self.temperature = weight, features, temperature

    def check(self, model: Model) -> None:
        """Refuse strategies that do not tell what they hide."""
        own = type(model.strategy)
        plain = own.hide is Strategy.hide and own.prompts is Strategy.prompts
        if not plain and not isinstance(model.strategy, AllStage):
            raise InputError(
                f"procedure 'co_distillation': strategy {own.__name__} hides modalities or gives prompts, so "
                "the student's input is not known; take 'all_stage', or one that only fills"
            )

    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield the one step."""
        head = getattr(model.fusion, "head", None)
        with watched(getattr(model.strategy, "visible", None)) as shown, watched(head) as entered:
            output = model(batch)
            there = dict(zip(model.modalities, shown[-1], strict=True)) if shown else batch.presence
            logits = model.fusion(restrict(output.tokens, there))
        losses = {
            "task_completed": self.task.loss(output.logits, batch.target),
            "task_observed": self.task.loss(logits, batch.target),
            "distillation": self.weight * self._distance(logits, output.logits.detach()),
        }
        if self.features and len(entered) == 2:
            losses["features"] = self.features * F.mse_loss(entered[1], entered[0].detach())
        losses |= output.losses
        yield Step(sum(losses.values(), start=losses["task_completed"].new_zeros(())), losses)

    def _distance(self, student: Logits, teacher: Logits) -> Float[Tensor, ""]:
        if not isinstance(self.task, SingleLabel):
            return F.mse_loss(student, teacher)
        own, taught = ((z.float() / self.temperature).log_softmax(dim=1) for z in (student, teacher))
        return self.temperature**2 * F.kl_div(own, taught, reduction="batchmean", log_target=True)


def _padded(tokens: Tokens, least: int) -> Tokens:
    more = max(0, least - tokens.values.shape[1])
    return Tokens(F.pad(tokens.values, (0, 0, 0, more)), F.pad(tokens.valid, (0, more)))


def _mask(seen: Bool[Tensor, "batch tokens"], rate: float) -> Bool[Tensor, "batch tokens"]:
    """Choose tokens among those that are there, never all of a row."""
    if not rate:
        return torch.zeros_like(seen)
    draw = torch.rand(seen.shape, device=seen.device).masked_fill(~seen, -1.0)
    kept = torch.zeros_like(seen).scatter(1, draw.argmax(dim=1, keepdim=True), True)
    return seen & (draw < rate) & ~kept


def _sines(values: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "tokens width"]:
    """Give the positions of Vaswani et al. (2017): sines in the first half of the channels, then cosines."""
    tokens, width = values.shape[1:]
    half = (width + 1) // 2
    speed = 10000 ** (-torch.arange(half, device=values.device) / half)
    angle = torch.arange(tokens, device=values.device)[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].to(values.dtype)
