"""Encoders with weights that were really trained: they do what they were trained for, and LoRA tunes them."""

import csv
import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Encoder
from mmx_encoders.kwt import Kwt
from mmx_encoders.pretrain_tiny_ast import speak
from mmx_encoders.sound import cosines, mel_filters
from mmx_encoders.torchvision_image import TorchvisionImage
from mmx_encoders.transformers_text import TransformersText
from mmx_encoders.yamnet import Yamnet

TABLES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "real_tables.py"))
MINILM = TABLES["MINILM"]


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    """Give the folder of weights, or skip."""
    folder = shared_data / "weights"
    if not folder.is_dir():
        pytest.skip(f"no weights: '{folder}' is not there")
    return folder


def losses_under_lora(encoder: Encoder, raw: Tensor, labels: Tensor, steps: int = 8) -> list[float]:
    """Tune LoRA and a linear head for a few steps; give the loss before each."""
    torch.manual_seed(0)
    Lora(rank=4).apply(encoder)
    head = nn.Linear(encoder.width, int(labels.max()) + 1)
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trainable) < 0.1 * sum(p.numel() for p in encoder.parameters())
    before = [p.detach().clone() for p in trainable]
    optimizer = torch.optim.AdamW(
        [{"params": trainable, "lr": 3e-3}, {"params": head.parameters(), "lr": 3e-2}]
    )
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(head(encoder(raw).values[:, 0]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(not torch.equal(a, b) for a, b in zip(before, trainable, strict=True))
    return losses


# MiniLM, by transformers


@pytest.fixture(scope="module")
def read(weights: Path):  # type: ignore[no-untyped-def]
    """Give a function from sentences to padded token ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights / "minilm_tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(24)

    def ids(sentences: list[str]) -> Tensor:
        rows = [torch.tensor(e.ids) for e in tokenizer.encode_batch(sentences)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    return ids


def minilm(weights: Path) -> TransformersText:
    file = str(weights / "all_minilm_l6_v2.safetensors")
    return TransformersText(config=MINILM, weights=file, summary="mean").eval()


def test_minilm_gives_the_similarities_of_its_card(weights: Path, read) -> None:  # type: ignore[no-untyped-def]
    sentences = ["That is a happy person", "That is a happy dog", "That is a very happy person"]
    with torch.no_grad():
        values = minilm(weights)(read([*sentences, "Today is a sunny day"])).values[:, 0]
    similar = F.cosine_similarity(values[:1], values[1:])
    torch.testing.assert_close(similar, torch.tensor([0.695, 0.943, 0.257]), atol=1e-3, rtol=0)


def test_minilm_is_tuned_by_lora(weights: Path, shared_data: Path, read) -> None:  # type: ignore[no-untyped-def]
    file = shared_data / "image_text" / "grocery.npz"
    if not file.is_file():
        pytest.skip(f"no texts: '{file}' is not there")
    data = np.load(file, allow_pickle=False)
    rows = slice(0, 81, 8)
    labels = torch.unique(torch.from_numpy(data["class_coarse"][rows]), return_inverse=True)[1]
    losses = losses_under_lora(minilm(weights), read(data["class_text"][rows].tolist()), labels)
    assert losses[-1] < 0.7 * losses[0]


# KWT and YAMNet


@pytest.fixture(scope="module")
def spoken(shared_data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Give 240 spoken digits (8 kHz, one second), their labels, and which are of the official test takes."""
    file = shared_data / "avmnist" / "fsdd.npz"
    if not file.is_file():
        pytest.skip(f"no speech: '{file}' is not there")
    data = np.load(file, allow_pickle=False)
    rows = np.flatnonzero(data["take"] % 12 == 1)  # four takes a digit and speaker, one of them for test
    wave, offset = data["wave"], data["offset"]
    clips = [wave[offset[i] : offset[i + 1]][:8000] for i in rows]
    waves = torch.stack([F.pad(torch.from_numpy(c / 32768).float(), (0, 8000 - len(c))) for c in clips])
    labels = torch.from_numpy(data["label"][rows].astype(np.int64))
    return waves, labels, torch.from_numpy(data["is_test"][rows].astype(bool))


def head_of(file: Path, name: str) -> nn.Linear:
    """Give the classifier that a file of weights was trained with."""
    state = load_file(file)
    head = nn.Linear(*reversed(state[f"{name}.weight"].shape))
    head.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    return head.requires_grad_(False)


def probe(encoder: Encoder, spoken: tuple[Tensor, Tensor, Tensor]) -> float:
    """Give the test accuracy of logistic regression on an encoder's summaries of digits."""
    waves, labels, test = spoken
    with torch.no_grad():
        features = encoder.eval()(waves).values[:, 0].numpy()
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    model = LogisticRegression(max_iter=1000).fit(features[~test], labels[~test])
    return float(model.score(features[test], labels[test]))


def kwt(weights: Path, sample_rate: int = 16000) -> Kwt:
    return Kwt(str(weights / "kwt1_speech_commands.safetensors"), sample_rate=sample_rate).eval()


def test_the_front_end_of_kwt_is_that_of_its_release(weights: Path) -> None:
    state = load_file(weights / "kwt1_speech_commands.safetensors")
    torch.testing.assert_close(mel_filters(257, 80, 20.0, 7600.0).T[:, :244], state["fe_mel"])
    torch.testing.assert_close(cosines(80, 40).T, state["fe_dct"])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_kwt_knows_its_commands_in_voices_that_it_never_heard(weights: Path) -> None:
    labels = json.loads((weights / "kwt1_speech_commands.json").read_text())["labels"]
    clips = [(speak(w, v, 0), labels.index(w)) for w in labels[2:] for v in ("m1", "f2", "Alex", "Andrea")]
    waves = torch.zeros(len(clips), 8000)
    for row, (clip, _) in zip(waves, clips, strict=True):
        start = max(0, 8000 - len(clip)) // 2
        row[start : start + len(clip)] = torch.from_numpy(clip[:8000] / 32768)
    with torch.no_grad():
        summaries = kwt(weights, sample_rate=8000)(waves).values[:, 0]
        named = head_of(weights / "kwt1_speech_commands.safetensors", "head")(summaries).argmax(dim=1)
    right = (named == torch.tensor([label for _, label in clips])).float().mean()
    assert right > 0.6  # of twelve names; one in twelve by chance


def test_kwt_tells_digits_that_it_was_not_trained_on(
    weights: Path, spoken: tuple[Tensor, Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    assert probe(kwt(weights, 8000), spoken) > max(0.85, probe(Kwt("none", sample_rate=8000), spoken) + 0.1)


def test_kwt_is_tuned_by_lora(weights: Path, spoken: tuple[Tensor, Tensor, Tensor]) -> None:
    waves, labels, _ = spoken
    losses = losses_under_lora(kwt(weights, 8000), waves[::8], labels[::8])
    assert losses[-1] < 0.7 * losses[0]


def yamnet(weights: Path, sample_rate: int = 16000) -> Yamnet:
    return Yamnet(str(weights / "yamnet_audioset.safetensors"), sample_rate).eval()


def test_yamnet_hears_what_is_there(weights: Path, spoken: tuple[Tensor, Tensor, Tensor]) -> None:
    with (weights / "yamnet_class_map.csv").open() as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    head = head_of(weights / "yamnet_audioset.safetensors", "fc")
    made = {
        "Silence": torch.zeros(1, 16000),
        "White noise": 0.3 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)),
        "Sine wave": 0.3 * torch.sin(torch.arange(16000) * 0.2)[None],
    }
    with torch.no_grad():
        for name, sound in made.items():
            best = head(yamnet(weights)(sound).values[:, 0])[0].topk(3).indices
            assert name in [names[i] for i in best]
        talk = spoken[0][::6, :3200].reshape(10, -1)  # digit after digit for two seconds
        speech = head(yamnet(weights, 8000)(talk).values[:, 0]).argmax(dim=1)
    assert (speech == names.index("Speech")).float().mean() > 0.9


def test_yamnet_is_tuned_by_lora(weights: Path, spoken: tuple[Tensor, Tensor, Tensor]) -> None:
    waves, labels, _ = spoken
    losses = losses_under_lora(yamnet(weights, 8000), waves[::10, :7800], labels[::10], steps=14)
    assert losses[-1] < 0.7 * losses[0]


# MobileNetV2, by torchvision


@pytest.fixture(scope="module")
def mobilenet(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchvisionImage:
    """Give torchvision's network with weights that another library trained, normalised as it did."""
    file = tmp_path_factory.mktemp("mobilenet") / "mobilenet_v2.safetensors"
    save_file(TABLES["as_torchvision"](load_file(weights / "mobilenet_v2_imagenet.safetensors")), file)
    half = [0.5, 0.5, 0.5]
    return TorchvisionImage("mobilenet_v2", weights=str(file), size=224, mean=half, std=half).eval()


@pytest.fixture(scope="module")
def products(shared_data: Path) -> dict[str, Tensor]:
    """Give pictures of products that are classes of ImageNet too."""
    file = shared_data / "image_text" / "grocery.npz"
    if not file.is_file():
        pytest.skip(f"no pictures: '{file}' is not there")
    data = np.load(file, allow_pickle=False)
    pictures = {}
    for i, name in enumerate(data["class_name"].tolist()):
        content = data["iconic_jpeg"][data["iconic_offset"][i] : data["iconic_offset"][i + 1]].tobytes()
        pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        pictures[name] = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    known = "Granny-Smith Banana Lemon Orange Pineapple Pomegranate Cucumber Zucchini".split()  # noqa: SIM905
    return {n: p for n, p in pictures.items() if n in known or n.endswith("Bell-Pepper")}


def test_mobilenet_names_what_is_on_pictures(
    weights: Path, mobilenet: TorchvisionImage, products: dict[str, Tensor]
) -> None:
    labels = (weights / "imagenet_labels.txt").read_text().splitlines()
    head = head_of(weights / "mobilenet_v2_imagenet.safetensors", "fc")
    with torch.no_grad():
        named = head(mobilenet(torch.stack(list(products.values()))).values[:, 0]).argmax(dim=1)
    right = [
        labels[i].split(",")[0].lower() in name.replace("-", " ").lower()
        for i, name in zip(named.tolist(), products, strict=True)
    ]
    assert sum(right) >= 7, f"{sum(right)} of {len(right)}"  # of 1,001 classes


def test_mobilenet_is_tuned_by_lora(mobilenet: TorchvisionImage, products: dict[str, Tensor]) -> None:
    pictures = torch.stack(list(products.values()))[:8, :, ::2, ::2]
    mobilenet.prepare.crop_size = mobilenet.prepare.resize_size = [96]
    losses = losses_under_lora(mobilenet, pictures, torch.arange(8))
    assert losses[-1] < 0.7 * losses[0]
