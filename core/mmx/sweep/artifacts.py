"""The files that a trial and a sweep leave in the store."""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors.torch import save_file

from mmx.config import SweepSpec, TrialSpec, plain
from mmx.contracts import Task, TrialLog
from mmx.registry import Registry
from mmx.report.trial_plots import write_trial_plots
from mmx.runs import ENVIRONMENT, PREDICTIONS, SPEC, TRAINED
from mmx.runs.environment import environment
from mmx.runs.predictions import write_predictions
from mmx.trial import Outcome


def keep_trial(
    log: TrialLog,
    spec: TrialSpec,
    outcome: Outcome,
    task: Task,
    where: Mapping[str, Any],
    plots: bool = True,
) -> None:
    """Write a finished trial's figures, predictions, trained weights, spec, environment and plots."""
    by_step: dict[int, dict[str, float]] = {}
    for name, curve in outcome.metrics.items():
        if not name.startswith(("train/", "val/")):  # these were logged epoch by epoch
            for step, value in curve.items():
                by_step.setdefault(step, {})[name] = value
    for step, figures in sorted(by_step.items()):
        log.metrics(figures, step)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / SPEC).write_text(json.dumps(spec.to_dict(), indent=2), encoding="utf-8")
        (place / ENVIRONMENT).write_text(json.dumps(where, indent=2), encoding="utf-8")
        save_file(dict(outcome.state), place / TRAINED)
        if outcome.predictions is not None:
            write_predictions(place / PREDICTIONS, outcome.predictions, task, "test")
        if plots:
            _draw(place, outcome, task)
        for path in sorted(place.iterdir()):
            log.artifact(path)


def _draw(folder: Path, outcome: Outcome, task: Task) -> None:
    """Draw a trial's plots; that one cannot be drawn is told, and no reason to lose the trial."""
    try:
        write_trial_plots(folder, outcome, task)
    except OSError:  # of the disk, which others meet as well
        raise
    except Exception as error:  # noqa: BLE001 a stranger's task may have scores that nobody foresaw
        warnings.warn(f"a trial's plots could not be drawn: {error}", stacklevel=2)


def sweep_files(folder: Path, sweep: SweepSpec, plan: Mapping[str, Any], registry: Registry) -> list[Path]:
    """Write what a sweep's parent run keeps of how it was made."""
    files = {
        "resolved.yaml": OmegaConf.to_yaml(OmegaConf.create(resolved(sweep))),
        "plan.json": json.dumps(plan, indent=2),
        "plugins.json": json.dumps(plugin_facts(registry), indent=2),
        "environment.txt": environment(),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def resolved(sweep: SweepSpec) -> dict[str, Any]:
    """Give the sweep as a file would say it, without addresses of stores (they may hold passwords)."""
    content = plain(sweep)
    trial = content.pop("trial")
    for key in ("store", "source"):
        content.pop(key)
    return {"schema": content.pop("schema"), "name": content.pop("name"), **trial, **content}


def plugin_facts(registry: Registry) -> list[dict[str, str]]:
    """List every component that was found, with its distribution and version."""
    return [
        {
            "kind": offer.kind,
            "name": offer.component.name,
            "path": offer.component.path,
            "distribution": offer.distribution,
            "version": offer.version,
        }
        for offer in registry.offers
    ]
