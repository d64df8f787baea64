"""Trains a trial's phases, one after another, in the one loop; equal phases of a sweep are trained once."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmx import evaluate
from mmx.assemble import State, hand_over
from mmx.config import TrialSpec
from mmx.contracts import Presence
from mmx.data import Split, seen_in_training
from mmx.model import MultimodalModel, fingerprint
from mmx.protocols import derive_seed, draw_presence
from mmx.team import ALONE, Team
from mmx.train import Figures, Fit, OnEpoch, fit
from mmx.trial.bench import Bench, monitor_of
from mmx.trial.checkpoint import Checkpoint, write_whole
from mmx.trial.code import phase_keys
from mmx.trial.encoded import open_split

ROOM = 2**30
"""Bytes that are left free on the disk when phases are kept."""


@dataclass(frozen=True)
class Stage:
    """What one phase did."""

    fit: Fit
    trainable: int
    total: int


def train_in_phases(
    spec: TrialSpec,
    bench: Bench,
    device: torch.device,
    on_epoch: OnEpoch = lambda epoch, figures: False,
    team: Team = ALONE,
) -> tuple[MultimodalModel, list[Stage]]:
    """Train every phase; give the last one's model, at its best epoch, and what each phase did.

    A phase starts from the one before, whose adapters are folded into the weights, or (`restart`) from the
    pretrained encoders. Its procedure may learn from the model before it.
    The result of a phase is a function of its own and all earlier settings. But for a trial's last one it is
    kept by their hash, for other trials and for this one, should it be broken off. The last one's checkpoint
    stays, so that evaluation can be broken off too (see `Bench.forget`).
    `on_epoch` is told epochs that go on counting; that it may end training is honoured in the last phase.
    Every process of a `team` calls this, with a bench of its own; only the leader's keeps anything.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stages: list[Stage] = []
    teacher: MultimodalModel | None = None
    start, told = None, 0
    specs, keys = spec.stages(), phase_keys(spec, bench.registry, device)
    for place, (now, key) in enumerate(zip(specs, keys, strict=True)):
        restart = bool(spec.training.phases) and spec.training.phases[place].restart
        last = place + 1 == len(specs)
        model = bench.model(now, None if restart else start).to(device)
        tell = _shifted(on_epoch, told, honoured=last)
        kept = bench.kept(key) if spec.training.phases and team.leads else None
        checkpoint = bench.checkpoint(key, last) if team.leads else None
        stages.append(_run(now, bench, model, teacher, device, tell, kept, checkpoint, last, team))
        told += len(stages[-1].fit.history)
        if not last and not spec.training.phases[place + 1].restart:
            start = _copy(hand_over(model, now, specs[place + 1]))
        teacher = model
    return model, stages


def _shifted(on_epoch: OnEpoch, by: int, honoured: bool) -> OnEpoch:
    return lambda epoch, figures: bool(on_epoch(by + epoch, figures)) and honoured


def _run(
    spec: TrialSpec,
    bench: Bench,
    model: MultimodalModel,
    teacher: MultimodalModel | None,
    device: torch.device,
    on_epoch: OnEpoch,
    kept: Path | None,
    checkpoint: Checkpoint | None,
    last: bool,
    team: Team,
) -> Stage:
    """Train one phase, or take over what was kept of it."""
    stage = _recall_together(model, kept, team)
    if stage is None:
        fitted = _train(spec, bench, model, teacher, device, on_epoch, checkpoint, team)
        stage = Stage(fitted, *model.count_parameters())
        if kept is not None and not last:
            _remember(model, stage, kept)
    else:
        for epoch, figures in enumerate(stage.fit.history):
            on_epoch(epoch, figures)
    # Where the disk had no room to keep the phase, its checkpoint does for a while.
    if checkpoint is not None and kept is not None and kept.exists():
        checkpoint.remove()
    return stage


def _train(
    spec: TrialSpec,
    bench: Bench,
    model: MultimodalModel,
    teacher: MultimodalModel | None,
    device: torch.device,
    on_epoch: OnEpoch,
    checkpoint: Checkpoint | None,
    team: Team,
) -> Fit:
    guide = None if teacher is None else team.share(teacher)
    procedure = bench.procedure(spec, model, guide)
    seed, train = spec.missing.seed, open_split(spec, bench, model, "train", device)
    return fit(
        model,
        procedure,
        train,
        _presence(spec, bench, train, derive_seed(seed, "train", spec.seed)),
        spec.training,
        monitor_of(spec, train.task),
        _validation(spec, bench, model, device) if team.leads else dict,
        spec.seed,
        device,
        on_epoch,
        checkpoint,
        team,
    )


def _validation(
    spec: TrialSpec, bench: Bench, model: MultimodalModel, device: torch.device
) -> Callable[[], Figures]:
    val = open_split(spec, bench, model, "val", device)
    presence, size = _presence(spec, bench, val, spec.missing.seed), max(256, spec.training.batch_size)
    return lambda: evaluate.validate(model, val, presence, device, size, spec.training.loader_workers)


def _presence(spec: TrialSpec, bench: Bench, split: Split, seed: int) -> Presence:
    """Draw who is present, then take away the modalities that training does not see."""
    train = spec.missing.train
    drawn = draw_presence(bench.protocol(spec), train.rate, split.ids, split.natural, seed, split.name)
    return seen_in_training(drawn, train.modalities)


def _copy(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _remember(model: MultimodalModel, stage: Stage, path: Path) -> None:
    """Write a trained phase; the file appears whole or, where the disk has no room for it, not at all."""
    state = {name: tensor.cpu().contiguous() for name, tensor in _copy(model.state_dict()).items()}
    noted = {"stage": json.dumps(asdict(stage)), "state": fingerprint(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free >= ROOM + 2 * sum(t.nbytes for t in state.values()):
            write_whole(path, lambda half: save_file(state, half, metadata=noted))
    except (OSError, SafetensorError):  # it saves time and no more
        return


def _recall_together(model: MultimodalModel, kept: Path | None, team: Team) -> Stage | None:
    """Let the leader read a trained phase, and bring all processes to its state, read or built anew."""

    def read() -> dict[str, Any] | None:
        found = None if kept is None else _recall(model, kept)
        return None if found is None else asdict(found)

    found = team.decide(read)
    team.spread(model)
    return None if found is None else _stage(found)


def _stage(told: dict[str, Any]) -> Stage:
    return Stage(**{**told, "fit": Fit(**told["fit"])})


def _recall(model: MultimodalModel, path: Path) -> Stage | None:
    """Read a trained phase into a model that was built like it; None where there is none, or none whole."""
    try:
        state, told = _load(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        warnings.warn(f"kept phase '{path}' cannot be used ({error}): it is trained again", stacklevel=2)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    model.load_state_dict(state)
    return _stage(told)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
        noted = file.metadata()
    if noted["state"] != fingerprint(state):
        raise ValueError("its checksum does not agree")
    return state, json.loads(noted["stage"])
