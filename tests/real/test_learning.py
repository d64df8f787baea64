"""On real recordings: what is adapted beats what is not at equal budgets, and mask tokens beat zeros."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

from mmx.cli.open import open_plan
from mmx.trial import run_trial

SWEEPS = Path(__file__).parents[2] / "sweeps"
CHANCE = 0.1


def robust_accuracies(sweep: str, *overrides: str, cells: int = 2) -> list[list[float]]:
    """Run the first cells of a shipped sweep; give each one's robust test accuracies over its seeds."""
    plan = open_plan(SWEEPS / sweep, overrides)
    found = []
    for cell in plan.cells[:cells]:
        specs = [replace(cell.spec, seed=seed) for seed in plan.sweep.search.seeds]
        outcomes = [run_trial(spec, plan.bench, torch.device("cpu")) for spec in specs]
        found.append([outcome.last()["summary/robust_accuracy"] for outcome in outcomes])
    return found


@pytest.fixture(scope="module")
def trained_under_half_missing(shared_data: Path) -> dict[str, list[float]]:
    """Train both strategies as sweeps/avmnist.yaml says: hard, rate 0.5, three seeds."""
    names = ["zero_fill", "mask_token"]
    root = f"dataset.root={shared_data / 'avmnist'}"
    found = robust_accuracies("avmnist.yaml", root, f"search.axes.strategy.name={names}".replace("'", ""))
    return dict(zip(names, found, strict=True))


@pytest.mark.long
def test_mask_token_beats_zero_fill_by_mean_robust_accuracy(
    trained_under_half_missing: dict[str, list[float]],
) -> None:
    zero, mask = (trained_under_half_missing[name] for name in ("zero_fill", "mask_token"))
    assert len(zero) == len(mask) == 3
    assert mean(mask) > mean(zero), (mask, zero)


@pytest.mark.long
def test_every_seed_is_far_above_chance(trained_under_half_missing: dict[str, list[float]]) -> None:
    assert all(min(scores) > 6 * CHANCE for scores in trained_under_half_missing.values())


def test_pretrained_encoders_with_lora_beat_a_linear_probe_and_random_encoders(shared_data: Path) -> None:
    plain = f"dataset={{name: avmnist, root: {shared_data / 'avmnist'}}}"
    lora, probe, random = robust_accuracies(
        "pretraining.yaml", plain, "search.seeds=[0]", "training.epochs=2", cells=3
    )
    assert lora[0] > probe[0] + 0.01
    assert lora[0] > random[0] + 0.05
