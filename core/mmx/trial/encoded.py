"""Encodes once what does not train, for all epochs and all trials.

Of an encoder that is frozen the tokens are kept; of one whose first stages are frozen (LoRA in the last
blocks, say) what goes into the first stage that trains. Kept is a table of a whole split, under a hash of all
that it was made of: inputs, frozen weights, code, libraries, hardware. It is made in the order of the split,
in blocks of one size, in float32 and with nothing dropped out, whoever needs it first: so a trial's numbers
do not depend on what it found there.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from mmx.cache import Cache, FullError, default_folder
from mmx.config import TrialSpec, digest, plain
from mmx.contracts import Begun, Encoder, Modality, Tokens
from mmx.data import Split, Table
from mmx.errors import TrialError
from mmx.model import MultimodalModel, fingerprint
from mmx.protocols import all_patterns
from mmx.scores import Array
from mmx.trial.bench import Bench
from mmx.trial.code import module_digest

BLOCK = 256
"""Samples that are encoded at once."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Cut(NamedTuple):
    """How far an encoder's work is done before training."""

    stage: int | None
    """As in `Begun`."""


def open_split(
    spec: TrialSpec, bench: Bench, model: MultimodalModel, name: str, device: torch.device
) -> Split:
    """Open a split for a model; where the spec asks for it, with tables of what does not train.

    There is none for a modality whose encoder takes the strategy's prompts, whose adapter goes by pattern or
    chooses later what trains, or whose inputs may be others each time (see `Split.stamp`); and none at all
    where a teacher, who has encoders of his own, sees the same batches. TrialError where
    `frozen_cache_gigabytes`, or the disk, has no room for one.
    """
    split = bench.split(spec, name)
    if not spec.training.frozen_cache_gigabytes or bench.takes_teacher(spec):
        return split
    with _evaluating(model):
        tables = {m: _table(spec, model, m, split, device) for m in model.modalities}
    return split.with_tables({m: table for m, table in tables.items() if table is not None})


@contextmanager
def _evaluating(model: MultimodalModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _table(
    spec: TrialSpec, model: MultimodalModel, m: Modality, split: Split, device: torch.device
) -> Table | None:
    encoder = cast(Encoder, model.encoders[m])
    cut, stamp = _cut(model, m, split, device), split.stamp(m)
    if cut is None or stamp is None:
        return None
    shape = _encode(encoder, cut, split.example(m)[None].to(device)).shape[1:]
    cache = Cache(default_folder() / "encoded", int(spec.training.frozen_cache_gigabytes * 1e9), idle=0.0)
    workers = spec.training.loader_workers
    made_of = [m, plain(spec.encoders[m]), cut.stage, stamp, _weights(encoder), *_code_on(encoder, device)]
    try:
        packed = cache.fill(
            digest(made_of),
            (len(split), *shape),
            np.float32,
            lambda: _blocks(encoder, cut, split, m, device, workers, shape),
        )
    except (FullError, OSError) as error:
        # Whatever else cannot be read or written, inputs too, says so itself.
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        raise TrialError(
            f"no room to keep what '{m}' is encoded to ({error}); raise training.frozen_cache_gigabytes, or "
            "set it to 0"
        ) from error
    return Table(packed, cut.stage)


def _cut(model: MultimodalModel, m: Modality, split: Split, device: torch.device) -> _Cut | None:
    """Find out how far nothing trains; None where that is nowhere, or not known before training."""
    adapter, encoder = model.adapters.get(m), cast(Encoder, model.encoders[m])
    if adapter is not None and (adapter.by_pattern or adapter.calibration_batches):
        return None
    trains = [p.requires_grad for p in encoder.parameters()]
    if not trains or _is_prompted(model, m, device):
        return None
    if not any(trains):
        return _Cut(None)
    stage = _frozen_stages(encoder, split.example(m)[None].to(device))
    return _Cut(stage) if stage else None


def _is_prompted(model: MultimodalModel, m: Modality, device: torch.device) -> bool:
    """Ask the strategy for prompts, without a trace in the random numbers."""
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for pattern in (p for p in all_patterns(model.modalities) if m in p):
            presence = {n: torch.tensor([n in pattern], device=device) for n in model.modalities}
            if model.strategy.prompts(m, presence) is not None:
                return True
    return False


@torch.enable_grad()
def _frozen_stages(encoder: Encoder, example: Tensor) -> int:
    """Count the first stages whose outputs need no gradient."""
    state: Tensor | Tokens = example
    for stage in range(encoder.depth):
        state = encoder.advance(state, stage, stage + 1)
        if state.values.requires_grad:
            return stage
    return encoder.depth


def _weights(encoder: Encoder) -> str:
    """Hash what is frozen, by the names that it has without LoRA; statistics of norms that train change."""
    found: dict[str, Tensor] = {}
    for name, module in encoder.named_modules():
        own = list(module.named_parameters(recurse=False))
        buffers = [] if any(p.requires_grad for _, p in own) else module.named_buffers(recurse=False)
        found |= {f"{name}.{n}": t for n, t in (*own, *buffers) if not t.requires_grad}
    return fingerprint({name.replace(".base_layer.", "."): tensor for name, tensor in found.items()})


def _code_on(encoder: Encoder, device: torch.device) -> list[str]:
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [module_digest(encoder), hardware]


@torch.no_grad()
def _encode(encoder: Encoder, cut: _Cut, raw: Tensor) -> Tensor:
    tokens = encoder(raw) if cut.stage is None else encoder.advance(raw, 0, cut.stage)
    return Begun.of(tokens, cut.stage).packed.float()


def _blocks(
    encoder: Encoder,
    cut: _Cut,
    split: Split,
    m: Modality,
    device: torch.device,
    workers: int,
    shape: Sequence[int],
) -> Iterator[Array]:
    """Encode a split in its order; nothing of another modality is read."""
    alone = {n: there if n == m else torch.zeros_like(there) for n, there in split.natural.items()}
    for batch in split.batches(torch.arange(len(split)), BLOCK, alone, workers):
        present, block = batch.presence[m], np.zeros((len(batch.ids), *shape), np.float32)
        if bool(present.any()):
            raw = batch.inputs[m][present]
            assert isinstance(raw, Tensor)  # noqa: S101 the split has no tables
            block[present.numpy()] = _encode(encoder, cut, raw.to(device)).cpu().numpy()
        yield block
