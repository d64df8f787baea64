"""Trains a trial's phases, one after another, in the one loop; equal phases of a sweep are trained once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmx import evaluate
from mmx.assemble import State, hand_over
from mmx.config import TrialSpec, digest
from mmx.contracts import Presence
from mmx.data import Split, seen_in_training
from mmx.model import MultimodalModel
from mmx.protocols import derive_seed, draw_presence
from mmx.train import Figures, Fit, fit
from mmx.trial.bench import Bench, monitor_of

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
    on_epoch: Callable[[int, Figures], None] = lambda epoch, figures: None,
) -> tuple[MultimodalModel, list[Stage]]:
    """Train every phase; give the last one's model, at its best epoch, and what each phase did.

    A phase starts from the one before, whose adapters are folded into the weights, or (`restart`) from the
    pretrained encoders. Its procedure may learn from the model before it.
    The result of a phase is a function of its own and all earlier settings. But for a trial's last one it is
    kept by their hash, for other trials of the same call. `on_epoch` is told epochs that go on counting.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stages: list[Stage] = []
    teacher: MultimodalModel | None = None
    start, told, key = None, 0, ""
    specs = spec.stages()
    for place, now in enumerate(specs):
        restart = bool(spec.training.phases) and spec.training.phases[place].restart
        last = place + 1 == len(specs)
        model = bench.model(now, None if restart else start).to(device)
        key = digest([key, restart, _content(now), str(device)])
        kept = bench.kept(key) if spec.training.phases else None
        if kept is not None and kept.exists():
            stages.append(_recall(model, kept))
            for epoch, figures in enumerate(stages[-1].fit.history):
                on_epoch(told + epoch, figures)
        else:
            fitted = _train(now, bench, model, teacher, device, _shifted(on_epoch, told))
            stages.append(Stage(fitted, *model.count_parameters()))
            if kept is not None and not last:
                _remember(model, stages[-1], kept)
        told += len(stages[-1].fit.history)
        if not last and not spec.training.phases[place + 1].restart:
            start = _copy(hand_over(model, now, specs[place + 1]))
        teacher = model
    return model, stages


def _shifted(on_epoch: Callable[[int, Figures], None], by: int) -> Callable[[int, Figures], None]:
    return lambda epoch, figures: on_epoch(by + epoch, figures)


def _train(
    spec: TrialSpec,
    bench: Bench,
    model: MultimodalModel,
    teacher: MultimodalModel | None,
    device: torch.device,
    on_epoch: Callable[[int, Figures], None],
) -> Fit:
    seed = spec.missing.seed
    train, val = bench.split(spec, "train"), bench.split(spec, "val")
    val_presence, size = _presence(spec, bench, val, seed), max(256, spec.training.batch_size)
    return fit(
        model,
        bench.procedure(spec, model, teacher),
        train,
        _presence(spec, bench, train, derive_seed(seed, "train", spec.seed)),
        spec.training,
        monitor_of(spec, train.task),
        lambda: evaluate.validate(model, val, val_presence, device, size, spec.training.loader_workers),
        spec.seed,
        device,
        on_epoch,
    )


def _presence(spec: TrialSpec, bench: Bench, split: Split, seed: int) -> Presence:
    """Draw who is present, then take away the modalities that training does not see."""
    train = spec.missing.train
    drawn = draw_presence(bench.protocol(spec), train.rate, split.ids, split.natural, seed, split.name)
    return seen_in_training(drawn, train.modalities)


def _content(spec: TrialSpec) -> dict[str, object]:
    """Give what a phase's result depends on; how it is evaluated is no part of it."""
    content = spec.to_dict()
    del content["missing"]["eval"], content["training"]["loader_workers"]
    return content


def _copy(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _remember(model: MultimodalModel, stage: Stage, path: Path) -> None:
    """Write a trained phase; the file appears whole or, where the disk has no room for it, not at all."""
    state = {name: tensor.cpu().contiguous() for name, tensor in _copy(model.state_dict()).items()}
    if shutil.disk_usage(path.parent).free < ROOM + 2 * sum(t.nbytes for t in state.values()):
        return
    half = path.with_suffix(".part")
    try:
        save_file(state, half, metadata={"stage": json.dumps(asdict(stage))})
        half.replace(path)
    except (OSError, SafetensorError):  # it saves time and no more
        half.unlink(missing_ok=True)


def _recall(model: MultimodalModel, path: Path) -> Stage:
    """Read a trained phase into a model that was built like it."""
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 no mapping
        told = json.loads(file.metadata()["stage"])
    return Stage(Fit(**told.pop("fit")), **told)
