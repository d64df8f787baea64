"""Encoders with weights that were really trained: they do what they were trained for, and LoRA tunes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmx.builtin.adapters.lora import Lora
from mmx.contracts import Encoder
from mmx_encoders.transformers_text import TransformersText

MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


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
        [{"params": trainable, "lr": 1e-3}, {"params": head.parameters(), "lr": 1e-2}]
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
