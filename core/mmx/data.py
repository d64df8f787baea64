"""Reads a split in batches: who is there by nature, stacked inputs, an order that only the seed decides."""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmx.contracts import Batch, Begun, Dataset, Input, Modality, Presence, Sample
from mmx.errors import DataError
from mmx.protocols import derive_seed
from mmx.scores import Array


class Split:
    """The samples of one split, over some of the dataset's modalities.

    Samples of a dataset that says `in_memory` are read once and kept stacked. A sequence that can tell
    (id, modalities) of each sample without reading it offers them as an attribute `contents`.
    """

    def __init__(self, dataset: Dataset, name: str, modalities: Sequence[Modality]) -> None:
        self.name = name
        self.modalities = tuple(modalities)
        self.task = dataset.task
        self.tables: Mapping[Modality, Table] = {}
        """What is read in the place of a modality's raw inputs (see `with_tables`)."""
        self._examples: dict[Modality, Tensor] = {}
        self._stamps: dict[Modality, str | None] = {}
        self.samples = dataset.split(name)
        if len(self.samples) == 0:
            raise DataError(f"split '{name}' of {type(dataset).__name__} holds no samples")
        kept = list(self.samples) if dataset.in_memory else None
        self.ids, self.natural = self._index(kept)
        self._stack = self._collate(kept) if kept is not None else None

    def __len__(self) -> int:
        return len(self.ids)

    def _index(self, kept: Sequence[Sample] | None) -> tuple[list[str], Presence]:
        """Find ids and natural presence; refuse ids that occur twice, since masks hang on them."""
        known = getattr(self.samples, "contents", None)
        index = known if known is not None else [(s.id, tuple(s.inputs)) for s in (kept or self.samples)]
        ids = [i for i, _ in index]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise DataError(
                f"split '{self.name}' has the sample id '{twice}' more than once; ids must differ"
            )
        natural = {m: torch.tensor([m in present for _, present in index]) for m in self.modalities}
        alone = torch.stack(list(natural.values())).any(dim=0)
        if not bool(alone.all()):
            row = int((~alone).nonzero()[0])
            raise DataError(f"sample '{ids[row]}' of split '{self.name}' has none of {list(self.modalities)}")
        return ids, natural

    def example(self, modality: Modality) -> Tensor:
        """Give one raw input of a modality."""
        row = int(self.natural[modality].long().argmax())
        if not bool(self.natural[modality][row]):
            raise DataError(f"no sample of split '{self.name}' has the modality '{modality}'")
        return self.samples[row].inputs[modality]

    @property
    def targets(self) -> Tensor:
        """All targets, stacked."""
        if self._stack is not None:
            return self._stack.target
        return self.task.targets([self.samples[i].target for i in range(len(self))])

    @cached_property
    def digest(self) -> str:
        """Hash what the split holds: ids, who is there, targets; inputs too where they are kept in memory."""
        content = hashlib.sha256("\n".join(self.ids).encode())
        for tensor in (*self.natural.values(), self.targets, *self._held.values()):
            content.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            content.update(tensor.contiguous().numpy().tobytes())
        return content.hexdigest()[:12]

    @property
    def _held(self) -> Mapping[Modality, Tensor]:
        """Raw inputs that are kept in memory."""
        return cast(Mapping[Modality, Tensor], {} if self._stack is None else self._stack.inputs)

    def batch(self, rows: Tensor, presence: Presence) -> Batch:
        """Give some rows, with the presence that a protocol drew for the whole split."""
        here = {m: presence[m][rows] for m in self.modalities}
        if self._stack is None:
            found = self._collate([self.samples[r] for r in rows.tolist()], here)
        else:
            inputs = {m: t[rows] for m, t in self._held.items() if m not in self.tables}
            ids = [self.ids[r] for r in rows.tolist()]
            found = Batch(inputs, here, self._stack.target[rows], ids)
        begun = {m: table.read(rows, here[m]) for m, table in self.tables.items()}
        return replace(found, inputs={**found.inputs, **begun}) if begun else found

    def with_tables(self, tables: Mapping[Modality, "Table"]) -> "Split":
        """Give the same split; modalities that have a table are read there, not from their samples."""
        other = copy.copy(self)
        other.tables = dict(tables)
        return other

    def stamp(self, modality: Modality) -> str | None:
        """Hash what all inputs of a modality are made of; None where they may be other ones each time.

        They are the same where the dataset says `in_memory`, or where a sample's inputs offer
        `stamp(modality)`: a text that differs where the input does.
        """
        if modality not in self._stamps:
            self._stamps[modality] = self._stamp(modality)
        return self._stamps[modality]

    def _stamp(self, modality: Modality) -> str | None:
        present = self.natural[modality]
        content = hashlib.sha256(present.numpy().tobytes())
        if self._stack is not None:
            held = self._held[modality][present]
            content.update(f"{held.dtype}{tuple(held.shape)}".encode() + held.numpy().tobytes())
            return content.hexdigest()
        for row in present.nonzero()[:, 0].tolist():
            of_sample = getattr(self.samples[row].inputs, "stamp", None)
            if of_sample is None:
                return None
            content.update(f"{of_sample(modality)}\n".encode())
        return content.hexdigest()

    def batches(
        self, order: Tensor, size: int, presence: Presence, workers: int = 0, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Give batches in an order of rows."""
        chunks = [c for c in order.split(size) if not (drop_last and len(c) < size and len(order) >= size)]
        if self._stack is not None or workers == 0:
            yield from (self.batch(rows, presence) for rows in chunks)
        else:
            source: Any = _Chunks(self, chunks, presence)
            # Without a generator the loader draws a seed from the global one, and shifts dropout.
            own = torch.Generator().manual_seed(0)
            pinned = torch.cuda.is_initialized()  # else there is no GPU that this process feeds
            yield from DataLoader(
                source, batch_size=None, num_workers=workers, generator=own, pin_memory=pinned
            )

    def _collate(self, samples: Sequence[Sample], presence: Presence | None = None) -> Batch:
        """Stack samples; of one that is absent under `presence` nothing is read, which may mean decoding."""
        presence = presence or {m: torch.tensor([m in s.inputs for s in samples]) for m in self.modalities}
        raw = [m for m in self.modalities if m not in self.tables]
        inputs = {m: self._stack_modality(m, samples, presence[m].tolist()) for m in raw}
        targets = self.task.targets([s.target for s in samples])
        return Batch(inputs, presence, targets, [s.id for s in samples])

    def _stack_modality(
        self, modality: Modality, samples: Sequence[Sample], wanted: Sequence[bool]
    ) -> Tensor:
        found = {i: s.inputs[modality] for i, s in enumerate(samples) if wanted[i]}
        blank = torch.zeros_like(next(iter(found.values())) if found else self._example(modality))
        for i, raw in found.items():
            if raw.shape != blank.shape:
                raise DataError(
                    f"'{modality}' of sample '{samples[i].id}' has shape {tuple(raw.shape)}, others "
                    f"{tuple(blank.shape)}; the dataset must crop or pad to one shape"
                )
        return torch.stack([found.get(i, blank) for i in range(len(samples))])

    def _example(self, modality: Modality) -> Tensor:
        """Give one raw input of a modality; read once, for the shape of batches that have none."""
        if modality not in self._examples:
            self._examples[modality] = self.example(modality)
        return self._examples[modality]


@dataclass(frozen=True)
class Table:
    """What encoding a modality came to, as far as it was taken, for every sample of a split."""

    packed: Array
    """(samples, tokens, width + 1), as in `Begun`; zeros for samples that lack the modality."""
    stage: int | None

    def read(self, rows: Tensor, present: Tensor) -> Begun:
        """Give some rows; those that are not present are zeros, and are not read."""
        found = torch.zeros(len(rows), *self.packed.shape[1:])
        found[present] = torch.from_numpy(np.asarray(self.packed[rows[present].numpy()]))
        return Begun(found, self.stage)


@dataclass
class _Chunks:
    """A map-style dataset of whole batches, for loader processes."""

    split: Split
    chunks: Sequence[Tensor]
    presence: Presence

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, position: int) -> Batch:
        return self.split.batch(self.chunks[position], self.presence)


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """Give the order of rows in an epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def seen_in_training(presence: Presence, seen: Sequence[Modality]) -> Presence:
    """Take away the modalities that training does not see; an empty `seen` is all."""
    return {m: p if m in seen or not seen else torch.zeros_like(p) for m, p in presence.items()}


def rows_that_have_any(presence: Presence) -> Tensor:
    """Give the numbers of the rows in which at least one modality is present."""
    return torch.stack(list(presence.values())).any(dim=0).nonzero()[:, 0]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; presence goes along."""
    if device.type == "cpu":
        return batch

    def move(tensors: Mapping[str, Input]) -> dict[str, Any]:
        return {m: t.to(device, non_blocking=True) for m, t in tensors.items()}

    target = batch.target.to(device, non_blocking=True)
    return Batch(move(batch.inputs), move(batch.presence), target, batch.ids)
