"""Published methods learn on real recordings: a few epochs of each, far above chance whoever is absent."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmx.cli.open import open_plan
from mmx.config import TrialSpec
from mmx.sweep import Plan
from mmx.trial import run_trial

SWEEP = Path(__file__).parents[2] / "sweeps" / "compare_methods.yaml"
METHODS = (
    *(
        "u2a_concat",
        "ogm_ge",
        "qmf",
        "mla",
        "mmlora",
        "umt",
        "scale_shift",
        "map",
        "joint_embedding",
        "all_stage",
    ),
    *("shaspec", "mmin", "smil", "single_branch", "wander"),
)
QUICK = ("single_branch",)
"""Methods that `make test` trains; the others, of several phases or larger, are kept for `make test-long`."""
EPOCHS = 2
CHANCE = 0.1


def shortened(spec: TrialSpec) -> TrialSpec:
    """Take the epochs of every phase down."""
    phases = [
        replace(p, training={k: v for k, v in p.training.items() if k != "epochs"})
        for p in spec.training.phases
    ]
    return replace(spec, training=replace(spec.training, epochs=EPOCHS, phases=tuple(phases)))


@pytest.fixture(scope="module")
def plan(shared_data: Path) -> Plan:
    """Plan the comparison on the real data; phases that methods share are trained once."""
    return open_plan(SWEEP, [f"dataset={{name: avmnist, root: {shared_data / 'avmnist'}, difficulty: hard}}"])


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.long) for m in METHODS]
)
def test_learns_on_hard_avmnist_whoever_is_absent(plan: Plan, method: str) -> None:
    (cell,) = [c for c in plan.cells if c.raw.method == method]
    figures = run_trial(shortened(cell.spec), plan.bench, torch.device("cpu")).last()
    assert figures["summary/clean"] > 6 * CHANCE
    assert figures["summary/robust_accuracy"] > 4 * CHANCE
    assert figures["summary/worst"] > 2 * CHANCE
