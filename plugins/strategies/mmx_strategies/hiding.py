"""Hides modalities in training: the draw that several methods share."""

from collections.abc import Sequence

import torch

from mmx.contracts import Modality, Presence


def hide_one_of_complete(presence: Presence, modalities: Sequence[Modality], chance: float) -> Presence:
    """Take one modality, evenly chosen, from each complete row with probability `chance`.

    A row that lacks something loses nothing more. With M modalities and a chance of M/(M + 1) *all there* and
    each *one is gone* are equally likely.
    """
    if chance == 0 or len(modalities) < 2:
        return presence
    complete = torch.stack([presence[m] for m in modalities]).all(dim=0)
    hit = complete & (torch.rand(len(complete), device=complete.device) < chance)
    which = torch.randint(len(modalities), complete.shape, device=complete.device)
    return {m: presence[m] & ~(hit & (which == i)) for i, m in enumerate(modalities)}


def keep_some(presence: Presence, modalities: Sequence[Modality]) -> Presence:
    """Keep k ~ U{1, …, a} of the a modalities that a row has, evenly chosen."""
    there = torch.stack([presence[m] for m in modalities])  # (modalities, batch)
    held = there.sum(dim=0)
    kept = 1 + (torch.rand(held.shape, device=held.device) * held).long().clamp(max=held - 1)
    draw = torch.rand(there.shape, device=there.device).masked_fill(~there, 2.0)
    left = there & (draw.argsort(dim=0).argsort(dim=0) < kept)
    return dict(zip(modalities, left, strict=True))
