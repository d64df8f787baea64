"""Writes the tables of docs/results.md, from arrays of CMU-MOSI and of the Grocery Store Dataset.

`mosi.npz`: utterances of reviews, features of text (MiniLM of the transcript), audio (openSMILE) and video
(3D CNN, learnt on the training labels: validation flatters it). Audio and video are standardised by the
training rows. `grocery.npz`: photos of 81 products in 43 coarse classes; each photo's text describes a
product of the same coarse class, drawn by a seed, so that neither photo nor text tells the class alone. Its
table holds what a frozen MobileNetV2 (ImageNet) and MiniLM make of them.

Run: python benchmarks/real_tables.py FOLDER data    (FOLDER has mosi/, image_text/ and weights/)
"""

import io
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmx_encoders.torchvision_image import TorchvisionImage
from mmx_encoders.transformers_text import TransformersText

MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


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


def write_grocery(arrays: Path, weights: Path, table: Path) -> None:
    """Write one row a photo: photo and text (what frozen encoders make of them), label, split, id."""
    with np.load(arrays, allow_pickle=False) as found:
        held = dict(found)  # an archive unpacks an array each time it is asked for
    ends = zip(held["offset"][:-1], held["offset"][1:], strict=True)
    photos = _photo_features([held["jpeg"][a:b].tobytes() for a, b in ends], weights)
    texts = _text_features(held["class_text"].tolist(), weights)[held["paired_text_class"]]
    columns = {
        "id": [f"p{i}" for i in range(len(photos))],
        "photo": list(photos),
        "text": list(texts),
        "label": held["class_name"][held["fine"]].tolist(),
        "split": [("train", "val", "test")[number] for number in held["split"]],
    }
    parquet.write_table(pa.table(columns), table)


@torch.no_grad()
def _photo_features(files: list[bytes], weights: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mobilenet_v2.safetensors"
        save_file(as_torchvision(load_file(weights / "mobilenet_v2_imagenet.safetensors")), file)
        half = [0.5, 0.5, 0.5]
        network = TorchvisionImage("mobilenet_v2", weights=str(file), size=224, mean=half, std=half).eval()
    found = []
    for start in range(0, len(files), 64):
        opened = [np.array(Image.open(io.BytesIO(f)).convert("RGB")) for f in files[start : start + 64]]
        found.append(
            network(torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2) / 255).values[:, 0].numpy()
        )
        print(f"{start + len(opened)} of {len(files)} photos", end="\r", flush=True)
    return np.concatenate(found)


@torch.no_grad()
def _text_features(texts: list[str], weights: Path) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(weights / "minilm_tokenizer.json"))
    tokenizer.no_padding()
    rows = [torch.tensor(found.ids) for found in tokenizer.encode_batch(texts)]
    file = str(weights / "all_minilm_l6_v2.safetensors")
    network = TransformersText(config=MINILM, weights=file, summary="mean").eval()
    return network(nn.utils.rnn.pad_sequence(rows, batch_first=True)).values[:, 0].numpy()


def as_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give MobileNetV2 torchvision's names, with norms that add the bias into which they were folded."""
    result = {}
    for key in (key for key in state if key.endswith(".conv.weight")):
        block = re.fullmatch(r"blocks\.(\d+)\.(expand|dw|project)\.conv\.weight", key)
        if block is None:
            name = "features.0" if key.startswith("stem") else "features.18"
        else:
            place = ("expand", "dw", "project").index(block[2]) - (block[1] == "0")
            name = f"features.{int(block[1]) + 1}.conv.{place}"
        norm = f"{name}.1"
        if block is None or block[2] != "project":
            result[f"{name}.0.weight"] = state[key]
        else:
            result[f"{name}.weight"], norm = state[key], f"{name[:-1]}{int(name[-1]) + 1}"
        bias = state[key.replace("weight", "bias")].float()
        ones = torch.ones_like(bias)
        result |= {f"{norm}.weight": ones * (1 + 1e-5) ** 0.5, f"{norm}.bias": bias}
        result |= {f"{norm}.running_mean": 0 * ones, f"{norm}.running_var": ones}
        result[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return result


def main(source: Path, target: Path) -> None:
    """Write both tables."""
    write_mosi(source / "mosi" / "mosi.npz", target / "mosi.parquet")
    write_grocery(source / "image_text" / "grocery.npz", source / "weights", target / "grocery.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
