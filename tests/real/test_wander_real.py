"""Wander with three modalities on CMU-MOSI: it learns, and trains a small part of what fine-tuning trains."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from mmx.config import read_sweep
from mmx.registry import Registry
from mmx.sweep import plan_sweep
from mmx.trial import run_trial

TABLES = Path(__file__).parents[2] / "benchmarks" / "real_tables.py"
MAJORITY = 0.621
MODALITIES = ("text", "audio", "video")
PHASES = [
    {"fusion_adapter": {"name": "part", "targets": "(base|head).*"}},
    {"adapter": "frozen", "fusion_adapter": {"name": "part", "targets": "(product|head).*"}},
]


@pytest.fixture(scope="module")
def sentiment(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, audio and video of CMU-MOSI as columns of vectors, audio and video standardised."""
    path = tmp_path_factory.mktemp("mosi") / "mosi.parquet"
    runpy.run_path(str(TABLES))["write_mosi"](shared_data / "mosi" / "mosi.npz", path)
    return path


def test_three_modalities_are_learned_by_a_small_part(sentiment: Path, registry: Registry) -> None:
    sweep = {
        "schema": 1,
        "name": "wander-mosi",
        "dataset": {
            "name": "manifest",
            "table": str(sentiment),
            "columns": dict.fromkeys(MODALITIES, "vector"),
            "cache": str(sentiment.parent / "cache"),
        },
        "encoders": dict.fromkeys(MODALITIES, "mlp"),
        "adapter": "full",
        "strategy": "modality_dropout",
        "fusion": {"name": "wander", "length": 1},
        "training": {"epochs": 4, "batch_size": 64, "learning_rate": 0.002, "phases": PHASES},
        "missing": {"protocol": "per_modality", "train": {"rate": 0.0}, "eval": {"rates": [0.0, 0.5]}},
        "run": {"plots": False},
    }
    plan = plan_sweep(read_sweep(json.dumps(sweep), "mosi.yaml"), registry)
    outcome = run_trial(plan.cells[0].spec, plan.bench, torch.device("cpu"))
    # No pattern with video: its features were learnt on the training labels, and mislead whoever trusts them.
    for pattern in ("text", "text.audio"):
        assert outcome.last()[f"pattern/accuracy_has_{pattern}"] > MAJORITY + 0.05
    assert outcome.last()["phase/trainable_share"] < 0.3
