"""A made-up world in which it is known what each modality tells of the class, alone and with others.

With M modalities, C classes and B = ceil(log2 C), a sample is drawn as follows (sigma = `noise`, all normal
variables independent, e_k the k-th unit vector of C entries, beta_b(y) = +1 or -1 for bit b of y):

    y              uniform on 0 .. C-1
    u   = redundant * e_y + sigma * n            one draw, seen by EVERY modality, its noise included
    v_b = unique * beta_b(y) + sigma * n_b       bit b of the class, seen by modality b mod M only
    k_0 .. k_(S-2) uniform on 0 .. C-1,  k_(S-1) = y - k_0 - ... - k_(S-2)  modulo C
    w_m = synergy * e_(k_m) + sigma * n_m        seen by modality m only, for m < S = `synergy_order`
    x_m = Q_m [u, v_b of m, w_m, noise]          Q_m a fixed random rotation

So u is redundant in the strict sense (Williams & Beer 2010: any modality has all of it, two have no more than
one), v_b is unique, and the shares w_m are a one-time pad (XOR for two classes): any S-1 of them are
independent of the class, all S together tell it. What follows for strategies:

- only `redundant`: every pattern has the same Bayes accuracy. The absent part that matters is a linear
  function of any present modality, so a strategy that predicts the absent from the present, or reads only
  what is there, loses nothing; a constant filler without training under absence loses.
- only `unique`: given the present, the absent is independent of everything but its own bit. Nothing can be
  recovered, and no filler beats one that ignores the absent modality.
- only `synergy`: chance without all S sharing modalities, whatever the strategy; with all of them only a
  fusion that multiplies evidence beats chance (no linear one does).

A modality m >= B has no bit of its own: choose `classes` = 2^M for one unique bit in each.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmx.contracts import DataCard, Dataset, Sample
from mmx.errors import DataError, did_you_mean
from mmx.protocols import uniforms
from mmx.tasks import SingleLabel
from mmx.types import Modality

Array = npt.NDArray[Any]


class ToyWorld(Dataset):
    """Vectors (features,) of `modality_count` modalities m0, m1, ..., drawn as the module's head says.

    `redundant`, `unique` and `synergy` are strengths in units of one feature, to be compared with `noise`, a
    standard deviation. `natural_missing` is the probability of each modality to be absent by nature; a sample
    that would lose all keeps the one with the largest draw. Every sample is a pure function of
    (generator_seed, split, index) and of the strengths; sizes never change it.
    """

    in_memory = True

    def __init__(
        self,
        modality_count: int = 2,
        classes: int = 4,
        features: int = 16,
        redundant: float = 2.0,
        unique: float = 1.5,
        synergy: float = 2.0,
        noise: float = 1.0,
        synergy_order: int = 2,
        train_size: int = 512,
        val_size: int = 256,
        test_size: int = 1024,
        generator_seed: int = 0,
        natural_missing: float = 0.0,
    ) -> None:
        self.classes, self.features, self.noise, self.synergy_order = classes, features, noise, synergy_order
        self.redundant, self.unique, self.synergy = redundant, unique, synergy
        self.generator_seed, self.natural_missing = generator_seed, natural_missing
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.bits = (classes - 1).bit_length()
        self._check(modality_count)
        self.modalities = {f"m{number}": "vector" for number in range(modality_count)}
        self.task = SingleLabel(classes)
        self.card = self._card()
        self.rotations = [_rotation(self._generator("world", m), features) for m in self.modalities]
        self.signs = np.array(
            [[1.0 if y >> b & 1 else -1.0 for y in range(classes)] for b in range(self.bits)]
        )

    def _check(self, modality_count: int) -> None:
        """Refuse options that describe no world (DataError)."""
        _at_least("modality_count", modality_count, 2)
        _at_least("classes", self.classes, 2)
        _at_least("features", self.features, 2 * self.classes + -(-self.bits // modality_count))
        _at_least("synergy_order", self.synergy_order, 2)
        for name, size in self.sizes.items():
            _at_least(f"{name}_size", size, 1)
        for name in ("redundant", "unique", "synergy"):
            _at_least(name, getattr(self, name), 0)
        if self.synergy_order > modality_count:
            raise DataError(
                f"toy_world: synergy_order {self.synergy_order} is above modality_count {modality_count}"
            )
        if self.noise <= 0 or not 0 <= self.natural_missing < 1:
            raise DataError(
                f"toy_world: noise {self.noise} must be above 0, "
                f"natural_missing {self.natural_missing} in [0, 1)"
            )

    def split(self, name: str) -> Sequence[Sample]:
        """Draw the samples of a split (DataError where there is no such split)."""
        if name not in self.sizes:
            raise DataError(f"toy_world: no split '{name}'.{did_you_mean(name, self.sizes)}")
        present = self._natural_presence(name)
        return [self._sample(name, index, present[index]) for index in range(self.sizes[name])]

    def posterior(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Give p(class | inputs) (batch, classes) by the true densities; each input is (batch, features)."""
        numbers = {name: number for number, name in enumerate(self.modalities)}
        parts = {
            numbers[m]: values.numpy().astype(np.float64) @ self.rotations[numbers[m]]
            for m, values in inputs.items()
        }
        return torch.from_numpy(_normalised(self._log_likelihood(parts))).float()

    def bayes_accuracy(self, pattern: Collection[Modality], draws: int = 20_000) -> float:
        """Give the accuracy that no model can beat when just `pattern` is present.

        Source: E[max_y p(y | x)], with exact posteriors, over `draws` seeded draws; its standard error is
        below 0.3 / sqrt(draws), 0.002 by default.
        """
        strangers = sorted(set(pattern) - set(self.modalities))
        if strangers:
            raise DataError(
                f"toy_world: no modality '{strangers[0]}'.{did_you_mean(strangers[0], self.modalities)}"
            )
        if not pattern:
            return 1 / self.classes
        _, parts = self._draw(self._generator("bayes"), draws)
        seen = {number: parts[number] for number, name in enumerate(self.modalities) if name in pattern}
        return float(_normalised(self._log_likelihood(seen)).max(axis=1).mean())

    def _draw(self, generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Draw classes (count,) and what each modality sees before rotation (modalities, count, features)."""
        codes, size = np.eye(self.classes), self.classes
        labels = generator.integers(size, size=count)
        shared = generator.standard_normal((count, size))
        parts = self.noise * generator.standard_normal((len(self.modalities), count, self.features))
        parts[:, :, :size] = self.redundant * codes[labels] + self.noise * shared
        for bit, signs in enumerate(self.signs):
            parts[self._seat(bit)[0], :, self._seat(bit)[1]] += self.unique * signs[labels]
        shares = generator.integers(size, size=(self.synergy_order, count))
        shares[-1] = (labels - shares[:-1].sum(axis=0)) % size
        for number, share in enumerate(shares):
            parts[number, :, -size:] += self.synergy * codes[share]
        return labels, parts

    def _log_likelihood(self, parts: Mapping[int, Array]) -> Array:
        """Give log p(parts | class) (batch, classes) up to a constant a row.

        All codes have one length, so each normal density is linear in what is seen. Shares that are not
        complete are independent of the class and fall out.
        """
        first = next(iter(parts.values()))
        scores = self.redundant * first[:, : self.classes]
        for bit, signs in enumerate(self.signs):
            number, column = self._seat(bit)
            if number in parts:
                scores = scores + self.unique * parts[number][:, column, None] * signs
        scores = scores / self.noise**2
        if all(number in parts for number in range(self.synergy_order)):
            scores = scores + np.log(self._sum_of_shares(parts) + np.finfo(float).tiny)
        return scores

    def _sum_of_shares(self, parts: Mapping[int, Array]) -> Array:
        """Give p(w | class): the cyclic convolution of what each modality says of its share."""
        total = np.eye(self.classes)[:1]
        for number in range(self.synergy_order):
            said = _normalised(self.synergy / self.noise**2 * parts[number][:, -self.classes :])
            shifted = np.stack([np.roll(said, k, axis=1) for k in range(self.classes)], axis=1)
            total = np.einsum("nk,nky->ny", np.broadcast_to(total, said.shape), shifted)
        return total

    def _seat(self, bit: int) -> tuple[int, int]:
        """Give (modality number, column before rotation) of a bit of the class."""
        return bit % len(self.modalities), self.classes + bit // len(self.modalities)

    def _sample(self, split: str, index: int, present: Array) -> Sample:
        labels, parts = self._draw(self._generator(split, index), 1)
        inputs = {
            m: torch.from_numpy(part[0] @ rotation.T).float()
            for m, part, rotation, here in zip(self.modalities, parts, self.rotations, present, strict=True)
            if here
        }
        return Sample(f"{split}/{index}", inputs, int(labels[0]))

    def _natural_presence(self, split: str) -> Array:
        """Tell who is there by nature (samples, modalities)."""
        ids = [f"{split}/{index}" for index in range(self.sizes[split])]
        drawn = [uniforms(ids, self.generator_seed, split, f"natural/{m}") for m in self.modalities]
        draws = np.stack(drawn, axis=1)
        return (draws >= self.natural_missing) | (draws == draws.max(axis=1, keepdims=True))

    def _generator(self, *names: str | int) -> np.random.Generator:
        key = "\x00".join(map(str, (self.generator_seed, *names))).encode()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))

    def _card(self) -> DataCard:
        return DataCard(
            description="Gaussian vectors with known redundant, unique and synergistic parts; made up",
            source="drawn by mmx_datasets.toy_world from generator_seed",
            licence="CC0-1.0",
            citation="Williams and Beer, Nonnegative Decomposition of Multivariate Information, 2010",
            sizes=self.sizes,
            natural_missing=f"each modality with probability {self.natural_missing}"
            if self.natural_missing
            else "none",
        )


def _at_least(name: str, value: float | int, least: int) -> None:
    if value < least:
        raise DataError(
            f"toy_world: {name} {value} is too small; with the other options take at least {least}"
        )


def _rotation(generator: np.random.Generator, size: int) -> Array:
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


def _normalised(scores: Array) -> Array:
    """Give the softmax of each row."""
    values = np.exp(scores - scores.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)
