"""Writes the tables of docs/results.md, from arrays of CMU-MOSI and of the Grocery Store Dataset.

`mosi.npz`: utterances of reviews, features of text (MiniLM of the transcript), audio (openSMILE) and video
(3D CNN, learnt on the training labels: validation flatters it). Audio and video are standardised by the
training rows. `grocery.npz`: photos of 81 products in 43 coarse classes; each photo's text describes a
product of the same coarse class, drawn by a seed, so that neither photo nor text tells the class alone.

Run: python benchmarks/real_tables.py FOLDER_WITH_MOSI_AND_IMAGE_TEXT data
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet


def write_mosi(arrays: Path, table: Path) -> None:
    """Write one row an utterance: text, audio, video (numbers in one cell), label, split, id."""
    held = np.load(arrays, allow_pickle=False)
    fitted = ~held["train_is_val"]
    columns = {}
    for name in ("text_minilm", "audio", "video"):
        train, test = (held[f"{part}_{name}"].astype(np.float32) for part in ("train", "test"))
        if name != "text_minilm":
            mean, deviation = train[fitted].mean(axis=0), train[fitted].std(axis=0)
            train, test = ((part - mean) / np.where(deviation > 0, deviation, 1) for part in (train, test))
        columns[name.removesuffix("_minilm")] = list(np.concatenate([train, test]))
    labels = np.concatenate([held["train_label"], held["test_label"]])
    splits = [*np.where(held["train_is_val"], "val", "train"), *["test"] * len(held["test_label"])]
    table.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"u{i}" for i in range(len(labels))]
    parquet.write_table(
        pa.table({"id": ids, **columns, "label": [str(n) for n in labels], "split": splits}), table
    )


def write_grocery(arrays: Path, table: Path) -> None:
    """Write photos as files, and one row a photo: its path, a text, label, split."""
    with np.load(arrays, allow_pickle=False) as found:
        held = dict(found)  # an archive unpacks an array each time it is asked for
    photos = table.with_suffix("")
    photos.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "photo", "text", "label", "split"])
        for i, (start, end) in enumerate(zip(held["offset"][:-1], held["offset"][1:], strict=True)):
            path = photos / f"{i}.jpg"
            path.write_bytes(held["jpeg"][start:end].tobytes())
            text = str(held["class_text"][held["paired_text_class"][i]])
            label = str(held["class_name"][held["fine"][i]])
            split = ("train", "val", "test")[held["split"][i]]
            writer.writerow([f"p{i}", path.relative_to(table.parent), text, label, split])


def main(source: Path, target: Path) -> None:
    """Write both tables."""
    write_mosi(source / "mosi" / "mosi.npz", target / "mosi.parquet")
    write_grocery(source / "image_text" / "grocery.npz", target / "grocery.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
