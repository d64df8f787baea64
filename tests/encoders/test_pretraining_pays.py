"""On the embedded digits: the shipped weights are worth having."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmx.cli.open import open_plan
from mmx.trial import run_trial

SWEEP = Path(__file__).parents[2] / "sweeps" / "pretraining.yaml"


@pytest.mark.long  # tests/real has the same on recordings
def test_lora_on_shipped_weights_beats_a_probe_and_lora_on_random_ones() -> None:
    plan = open_plan(SWEEP, ["search.seeds=[0]", "training.epochs=6"])
    scores = [
        run_trial(replace(cell.spec, seed=0), plan.bench, torch.device("cpu")).last()[
            "summary/robust_accuracy"
        ]
        for cell in plan.cells[:3]
    ]
    lora, probe, random = scores
    assert lora > probe
    assert lora > random + 0.3
