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

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mmx.contracts import Filled, Modality, Presence, Strategy, TokenMap
from mmx.errors import InputError
from mmx_strategies.hiding import keep_some
from mmx_strategies.hyper_network import HyperNetwork, pattern_embeddings
from mmx_strategies.token_autoencoder import Moments, Slots, TokenAutoencoder, padded


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

    def _losses(self, found: Mapping[Modality, Slots], targets: TokenMap) -> dict[str, Tensor]:
        """Give (1) and (2)."""
        errors, apart = [], []
        for m, part in found.items():
            truth, known = padded(targets[m], part.values.shape[1])
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
