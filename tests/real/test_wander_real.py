"""Wander with three modalities on CMU-MOSI: it learns, and trains a small part of what fine-tuning trains."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mmx.config import read_sweep
from mmx.registry import Registry
from mmx.sweep import plan_sweep
from mmx.trial import run_trial

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
    with np.load(shared_data / "mosi" / "mosi.npz", allow_pickle=False) as file:
        data = dict(file)
    parts = []
    for part in ("train", "test"):
        text = data[f"{part}_text_minilm"].astype(np.float32)
        columns = {"text": text.tolist()}
        for name in ("audio", "video"):
            known = data[f"train_{name}"]
            scaled = (data[f"{part}_{name}"] - known.mean(axis=0)) / (known.std(axis=0) + 1e-6)
            columns[name] = scaled.astype(np.float32).tolist()
        held = data["train_is_val"] if part == "train" else np.zeros(len(text), dtype=bool)
        columns["label"] = data[f"{part}_label"].tolist()
        columns["split"] = ["val" if is_held else part for is_held in held]
        parts.append(pa.table(columns))
    pyarrow.parquet.write_table(pa.concat_tables(parts), path)
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
