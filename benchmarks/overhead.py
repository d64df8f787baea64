"""Training samples a second of mmx against a hand-written loop, on the same model and rows.

The peer is what a researcher would write for this one experiment: plain PyTorch, no masks, no hooks. Both
run in turns in one process, and the ratio of their medians is reported.

Run: python benchmarks/overhead.py
"""

import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmx.config import ComponentSpec, MissingSpec, TrainingSpec, TrialSpec
from mmx.data import shuffled
from mmx.registry import Registry
from mmx.train import Monitor, fit
from mmx.trial import Bench

ROUNDS = 5
BATCH = 64
LEARNING_RATE = 1e-3
MODALITIES = ("image", "audio")


def spec() -> TrialSpec:
    """The quick start's model, with nothing missing."""
    lora = ComponentSpec("lora", {"rank": 8})
    return TrialSpec(
        dataset=ComponentSpec("digits"),
        encoders={"image": ComponentSpec("tiny_vit"), "audio": ComponentSpec("tiny_ast")},
        adapters=dict.fromkeys(MODALITIES, lora),
        strategy=ComponentSpec("zero_fill"),
        fusion=ComponentSpec("concat"),
        fusion_adapter=ComponentSpec("full"),
        procedure=ComponentSpec("joint"),
        training=TrainingSpec(epochs=1, batch_size=BATCH, learning_rate=LEARNING_RATE, warmup=0.0),
        missing=MissingSpec(ComponentSpec("per_modality")),
    )


class HandWritten(nn.Module):
    """The same encoders and head, called directly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.image, self.audio = model.encoders["image"], model.encoders["audio"]
        self.head = model.fusion.head

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Logits of complete rows."""
        pair = [self.image(image).values[:, 0], self.audio(audio).values[:, 0]]
        return self.head(torch.cat(pair, dim=1))


def by_hand(bench: Bench) -> float:
    """Train an epoch with a hand-written loop; give samples a second."""
    model = HandWritten(bench.model(spec()))
    split = bench.split(spec(), "train")
    whole = split.batch(shuffled(len(split), 0, 0), split.natural)
    rows = TensorDataset(whole.inputs["image"], whole.inputs["audio"], whole.target)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)
    started = time.perf_counter()
    for image, audio, target in DataLoader(rows, batch_size=BATCH):
        loss = nn.functional.cross_entropy(model(image, audio), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    return len(split) / (time.perf_counter() - started)


def by_mmx(bench: Bench) -> float:
    """Train an epoch with mmx's loop; give samples a second."""
    split = bench.split(spec(), "train")
    model = bench.model(spec())
    monitor = Monitor("val/loss", higher_is_better=False)
    result = fit(
        model, bench.procedure(spec(), model), split, split.natural, spec().training, monitor,
        lambda: {"val/loss": 0.0}, 0, torch.device("cpu"),
    )  # fmt: skip
    return len(split) / result.seconds


def main() -> None:
    """Measure in turns and print the ratio."""
    bench = Bench(Registry.load())
    by_hand(bench), by_mmx(bench)  # warm-up
    pairs = [(by_hand(bench), by_mmx(bench)) for _ in range(ROUNDS)]
    hand, mmx = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"hand-written {hand:.0f} samples/s, mmx {mmx:.0f} samples/s, ratio {mmx / hand:.3f}")


if __name__ == "__main__":
    main()
