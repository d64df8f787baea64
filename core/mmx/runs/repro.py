"""What a run's numbers hang on, then and now; and the run again, number by number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmx.config import PhaseSpec, plain
from mmx.evaluate import mask_digest
from mmx.runs import StoredRun
from mmx.runs.environment import environment_of
from mmx.train import Figures
from mmx.trial import Bench, Outcome, run_trial
from mmx.trial.figures import drawn_masks

NUMERIC = (
    *("mmx", "torch", "torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "peft", "safetensors"),
    *("transformers", "accelerate", "timm"),
)
"""Packages whose version may change numbers; so may those that bring a plugin that the run used."""
TOLD = ("code", "data", "python", "platform", "device", "threads")
MEASURED = ("cost/", "phase/train_seconds")
"""Figures that are times and memory, never the same twice."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was when the run was made."""

    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Deviation:
    """A figure that came out otherwise: by how much at most, over its steps; NaN where steps differ."""

    figure: str
    largest: float


def masks_now(run: StoredRun, bench: Bench) -> str:
    """Draw the evaluation's masks again and give their digest."""
    predictions, _, _ = run.stored
    drawn = drawn_masks(run.spec, bench.protocol(run.spec), predictions)
    return mask_digest([presence for _, _, presence in drawn])


def differences(run: StoredRun, bench: Bench, device: torch.device) -> list[Difference]:
    """Say what differs now from when the run was made, of all that its numbers hang on."""
    then, now = run.environment, environment_of(run.spec, bench, device)
    found = [(key, then.get(key, "not noted"), now[key]) for key in TOLD]
    found.append(("masks", run.record.masks, masks_now(run, bench)))
    for name in sorted({*then["variables"], *now["variables"]}):
        found.append((name, then["variables"].get(name, "not set"), now["variables"].get(name, "not set")))
    found += _plugins(then["plugins"], now["plugins"])
    distributions = {p["distribution"] for p in then["plugins"]}
    for name in dict.fromkeys((*NUMERIC, *sorted(distributions))):
        found.append((name, *(e["packages"].get(name, "not installed") for e in (then, now))))
    return [Difference(what, str(a), str(b)) for what, a, b in found if a != b]


def _plugins(then: list[dict[str, str]], now: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    def told(plugins: list[dict[str, str]]) -> dict[str, str]:
        return {f"{p['kind']} '{p['name']}'": f"{p['distribution']} {p['version']}" for p in plugins}

    known = told(now)
    return [(what, origin, known.get(what, "not there")) for what, origin in told(then).items()]


def run_again(
    run: StoredRun, bench: Bench, device: torch.device, on_epoch: Callable[[int, Figures], object]
) -> list[Deviation]:
    """Train and evaluate the trial anew, with as many threads as then, and compare every figure.

    Nothing is written. A trial that a pruner had ended is ended after the same epoch.
    """
    epochs = len(run.tracker.history(run.run_id, "val/loss"))

    def told(epoch: int, figures: Figures) -> bool:
        on_epoch(epoch, figures)
        return epoch + 1 >= epochs

    threads = torch.get_num_threads()
    torch.set_num_threads(int(run.environment["threads"]))
    try:
        outcome = run_trial(run.spec, bench, device, told)
    finally:
        torch.set_num_threads(threads)
    return deviations(run, outcome)


def deviations(run: StoredRun, outcome: Outcome) -> list[Deviation]:
    """List the figures that are not, at every step, to the last bit those that the store holds."""
    found = []
    for name in dict.fromkeys((*outcome.metrics, *run.record.metrics)):
        if name.startswith(MEASURED):
            continue
        curve = outcome.metrics.get(name, {})
        finite = {step: value for step, value in curve.items() if abs(value) < float("inf")}
        stored = run.tracker.history(run.run_id, name)
        if finite != stored:
            same = finite.keys() == stored.keys()
            apart = [abs(value - stored[step]) for step, value in finite.items()] if same else [float("nan")]
            found.append(Deviation(name, max(apart)))
    return found


def sweep_of(run: StoredRun) -> dict[str, Any]:
    """Give a sweep file's content that has this trial as its only one."""
    content = run.spec.to_dict()
    content["adapter"] = content.pop("adapters")
    content["training"]["phases"] = [_phase(phase) for phase in run.spec.training.phases]
    seed = content.pop("seed")
    return {"schema": 1, "name": f"{run.sweep}-{run.record.title}", **content, "search": {"seeds": [seed]}}


def _phase(phase: PhaseSpec) -> dict[str, Any]:
    """Give a phase as a file says it: what it leaves open is left out."""
    content = plain(phase)
    told: Mapping[str, Any] = {"adapter": content.pop("adapters"), **content.pop("training"), **content}
    return {key: value for key, value in told.items() if value is not None}
