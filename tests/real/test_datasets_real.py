"""manifest on real data: the sentiment of CMU-MOSI as a table of vectors, and photos of a shop with texts."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mmx.config import read_sweep
from mmx.data import Split
from mmx.registry import Registry
from mmx.sweep import plan_sweep
from mmx.trial import run_trial
from mmx_datasets.manifest import Manifest

MAJORITY = 0.621
SPLITS = ("train", "val", "test")


def features(data: Mapping[str, Any], part: str, lacking: float) -> pa.Table:
    """Rows of one part; `lacking` of them have no audio."""
    audio, known = data[f"{part}_audio"], data["train_audio"]
    scaled = (audio - known.mean(axis=0)) / (known.std(axis=0) + 1e-6)
    here = np.random.default_rng(0).random(len(audio)) >= lacking
    held = data["train_is_val"] if part == "train" else np.zeros(len(audio), dtype=bool)
    return pa.table(
        {
            "text": data[f"{part}_text_minilm"].astype(np.float32).tolist(),
            "audio": [row.tolist() if has else None for row, has in zip(scaled, here, strict=True)],
            "words": data[f"{part}_transcript"].tolist(),
            "label": data[f"{part}_label"],
            "split": ["val" if is_held else part for is_held in held],
        }
    )


@pytest.fixture(scope="module")
def sentiment(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMU-MOSI as a Parquet file; three of ten rows lack their audio."""
    path = tmp_path_factory.mktemp("mosi") / "mosi.parquet"
    with np.load(shared_data / "mosi" / "mosi.npz", allow_pickle=False) as file:
        data = dict(file)
    pyarrow.parquet.write_table(pa.concat_tables([features(data, p, 0.3) for p in ("train", "test")]), path)
    return path


def options(table: Path, **columns: str) -> dict[str, Any]:
    return {"table": str(table), "columns": columns, "cache": str(table.parent / "cache")}


def test_a_table_of_real_vectors_gives_the_accuracy_that_its_source_gives(sentiment: Path) -> None:
    dataset = Manifest(**options(sentiment, text="vector"))
    known = [sample for split in ("train", "val") for sample in dataset.split(split)]
    parts = [(torch.stack([s.inputs["text"] for s in part]).numpy(), [s.target for s in part])
             for part in (known, dataset.split("test"))]  # fmt: skip
    with threadpool_limits(1):
        model = LogisticRegression(C=0.1, max_iter=300).fit(*parts[0])
    assert model.score(*parts[1]) == pytest.approx(0.785, abs=0.02)


def test_a_sweep_on_a_table_learns_with_natural_absence(sentiment: Path, registry: Registry) -> None:
    sweep = {
        "schema": 1,
        "name": "mosi",
        "dataset": {"name": "manifest", **options(sentiment, text="vector", audio="vector")},
        "encoders": {"text": "mlp", "audio": "mlp"},
        "adapter": "full",
        "strategy": "skip",
        "fusion": "mean",
        "training": {"epochs": 6, "batch_size": 64, "learning_rate": 0.002},
        "missing": {"protocol": "per_modality", "train": {"rate": 0.3}, "eval": {"rates": [0.0, 0.5]}},
        "run": {"plots": False},
    }
    plan = plan_sweep(read_sweep(json.dumps(sweep), "mosi.yaml"), registry)
    found = run_trial(plan.cells[0].spec, plan.bench, torch.device("cpu")).last()
    assert found["summary/robust_accuracy"] > MAJORITY + 0.05


def test_natural_absence_is_where_cells_are_empty(sentiment: Path) -> None:
    split = Split(Manifest(**options(sentiment, text="vector", audio="vector")), "test", ("text", "audio"))
    assert bool(split.natural["text"].all())
    assert 0.2 < float((~split.natural["audio"]).float().mean()) < 0.4


def test_a_vocabulary_of_real_words_knows_most_of_the_test_words(sentiment: Path) -> None:
    dataset = Manifest(**options(sentiment, words="text"))
    ids = torch.stack([sample.inputs["words"] for sample in dataset.split("test")])
    assert float((ids == 1).sum() / (ids != 0).sum()) < 0.2


def test_a_real_tokenizer_file_gives_the_ids_of_its_model(sentiment: Path, shared_data: Path) -> None:
    path = shared_data / "weights" / "minilm_tokenizer.json"
    words = options(sentiment, words="text")
    dataset = Manifest(**words, tokenizer=str(path), text_length=8)
    # BERT's ids: [CLS] hello world [SEP] and padding.
    assert dataset.read.text("hello world").tolist() == [101, 7592, 2088, 102, 0, 0, 0, 0]
    assert dataset.read.text("hello " * 20).tolist() == [101, *[7592] * 6, 102]


def test_real_photos_are_read_by_their_paths(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "image_text" / "grocery.npz", allow_pickle=False) as data:
        jpeg, offset, fine, part = data["jpeg"], data["offset"], data["fine"], data["split"]
        texts, paired = data["class_text"], data["paired_text_class"]
    rows = np.random.default_rng(0).choice(len(fine), 150, replace=False).tolist()
    with (tmp_path / "shop.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "report", "label", "split"])
        for i in rows:
            (tmp_path / f"{i}.jpg").write_bytes(jpeg[offset[i] : offset[i + 1]].tobytes())
            writer.writerow([f"{i}.jpg", texts[paired[i]], fine[i], SPLITS[part[i]]])
    dataset = Manifest(**options(tmp_path / "shop.csv", photo="image", report="text"), image_size=112)
    samples = [sample for split in SPLITS for sample in dataset.split(split)]
    assert len(samples) == 150
    photos = torch.stack([sample.inputs["photo"] for sample in samples])
    assert photos.shape == (150, 3, 112, 112)
    assert 0.2 < float(photos.mean()) < 0.8 and float(photos.std()) > 0.15
