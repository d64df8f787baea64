"""Who is absent: the law that every protocol obeys, and the draws that protocols are made from.

A draw is a pure function of (seed, split, sample id, modality), never of a global random state, so that
masks are the same for every strategy, batch size and worker, and nested: who is absent at one rate stays
absent at a higher one.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mmx.errors import InputError
from mmx.types import Modality, Pattern, Presence

Rate = float | Mapping[Modality, float]
Array = NDArray[Any]


class Protocol(ABC):
    """Says which modalities are absent at a missing rate, and how probable each pattern is.

    A rate is a fraction of 0 to 1, or one a modality. A mapping in which a single modality has a rate above
    zero means under every protocol: only that one goes missing.
    """

    samples_apart: ClassVar[bool] = True
    """Whether a sample's mask hangs on its own id alone; False: on all that it is drawn together with."""

    @abstractmethod
    def draw(
        self, rate: Rate, ids: Sequence[str], modalities: Sequence[Modality], seed: int, split: str = "test"
    ) -> Presence:
        """Draw who is present, for every sample; each keeps at least one modality."""

    @abstractmethod
    def weights(self, rate: Rate, modalities: Sequence[Modality]) -> dict[Pattern, float]:
        """Give the probability of each availability pattern; they add up to one."""

    def highest_rate(self, modalities: Sequence[Modality]) -> float:
        """Give the highest rate that exists with these modalities."""
        del modalities
        return 1.0


def uniforms(ids: Sequence[str], seed: int, split: str, stream: str) -> Array:
    """Draw one number in [0, 1) a sample, a pure function of (seed, split, id, stream)."""
    return _uniforms(tuple(ids), seed, split, stream)


@lru_cache(maxsize=32)
def _uniforms(ids: tuple[str, ...], seed: int, split: str, stream: str) -> Array:
    """Hash each id. Kept, since every rate of a curve asks for the same draws."""
    prefix = f"{seed}\x00{split}\x00{stream}\x00".encode()
    digests = b"".join(hashlib.blake2b(prefix + i.encode(), digest_size=8).digest() for i in ids)
    draws = (np.frombuffer(digests, dtype=">u8") >> np.uint64(11)).astype(np.float64) / 2**53
    draws.setflags(write=False)
    return draws


def all_patterns(modalities: Sequence[Modality]) -> list[Pattern]:
    """List every non-empty availability pattern, the fullest first."""
    sizes = range(len(modalities), 0, -1)
    return [frozenset(chosen) for size in sizes for chosen in combinations(modalities, size)]


def rate_of_each(rate: Rate, modalities: Sequence[Modality]) -> dict[Modality, float]:
    """Spell a rate out for every modality (InputError where it is no fraction or names a stranger)."""
    if isinstance(rate, Mapping):
        strangers = sorted(set(rate) - set(modalities))
        if strangers:
            raise InputError(
                f"missing rate for unknown modality '{strangers[0]}'; there are {list(modalities)}"
            )
        rates = {m: float(rate.get(m, 0.0)) for m in modalities}
    else:
        rates = dict.fromkeys(modalities, float(rate))
    for m, r in rates.items():
        if not 0.0 <= r <= 1.0:
            raise InputError(f"missing rate {r} of '{m}' is no fraction between 0 and 1")
    return rates


def only_one(rate: Rate) -> tuple[Modality, float] | None:
    """Give (modality, rate) where the rate lets a single modality go missing, else None."""
    if not isinstance(rate, Mapping):
        return None
    above = [(m, float(r)) for m, r in rate.items() if r > 0]
    if len(above) > 1:
        return None
    return above[0] if above else (next(iter(rate), ""), 0.0)


def to_presence(absent: Mapping[Modality, Array]) -> Presence:
    """Turn masks of absence into presence."""
    return {m: torch.from_numpy(~gone) for m, gone in absent.items()}


def draw_presence(
    protocol: Protocol, rate: Rate, ids: Sequence[str], natural: Presence, seed: int, split: str = "test"
) -> Presence:
    """Draw presence where samples lack modalities by nature already.

    Samples that have the same modalities are drawn together over those, so that each still keeps one, and a
    sample with a single modality loses none.
    """
    result = {m: present.clone() for m, present in natural.items()}
    for pattern, rows in natural_groups(natural).items():
        if len(pattern) < 2:
            continue
        chosen = [m for m in natural if m in pattern]
        own_rate = within(protocol, rate, chosen, tuple(natural))
        drawn = protocol.draw(own_rate, [ids[r] for r in rows.tolist()], chosen, seed, split)
        for m in chosen:
            result[m][rows] = drawn[m]
    return result


def pattern_weights(
    protocol: Protocol, rate: Rate, natural: Pattern, order: Sequence[Modality]
) -> dict[Pattern, float]:
    """Give the probability of each pattern for a sample that by nature has the modalities of `natural`."""
    if len(natural) < 2:
        return {natural: 1.0}
    chosen = [m for m in order if m in natural]
    return protocol.weights(within(protocol, rate, chosen, order), chosen)


def within(protocol: Protocol, rate: Rate, modalities: Sequence[Modality], among: Sequence[Modality]) -> Rate:
    """Restrict a rate to the modalities that a sample has by nature, as far as it exists with those."""
    if isinstance(rate, Mapping):
        return {m: rate.get(m, 0.0) for m in modalities}
    return rate if len(modalities) == len(among) else min(rate, protocol.highest_rate(modalities))


def natural_groups(natural: Presence) -> dict[Pattern, torch.Tensor]:
    """Group the rows by the modalities that they have: pattern to row indices."""
    names = list(natural)
    code = sum(
        (natural[m].long() << position for position, m in enumerate(names)), start=torch.zeros(1).long()
    )
    return {
        frozenset(m for position, m in enumerate(names) if value >> position & 1): (code == value).nonzero()[
            :, 0
        ]
        for value in sorted(code.unique().tolist(), reverse=True)
    }


def derive_seed(*parts: object) -> int:
    """Derive a seed from a base seed and names, so that one part's draws never shift another's."""
    text = "\x00".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
