"""The share of a training step that is spent waiting for data: the cache cold, warm, and none.

A ResNet-18 on photos that lie on the disk as JPEG files of 640x480, read by `manifest`. The peer is torch's
own DataLoader over torchvision's ImageFolder, which decodes each file each time; it feeds the same training
loop, with the same model and size of batches. All in turns in one process; of each the fastest of some
epochs. An epoch includes the start of its loader processes.

Run: python benchmarks/pipeline.py
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mmx.config import ComponentSpec, MissingSpec, TrainingSpec, TrialSpec
from mmx.contracts import Batch
from mmx.course import Course
from mmx.data import Split, shuffled
from mmx.registry import Registry
from mmx.trial import Bench

ROUNDS = 3
BATCH = 32
SIDE = 64
FILES = {"train": 320, "val": 2, "test": 2}
WORKERS = (0, 1, 2)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Epoch(NamedTuple):
    """What an epoch took."""

    seconds: float
    waited: float

    @property
    def share(self) -> float:
        """The share of its time in which nothing was computed, for want of data."""
        return self.waited / self.seconds


def photos(folder: Path, **options: Any) -> TrialSpec:
    """Give a ResNet-18 that is trained as a whole on the photos of a folder."""
    table = {"table": str(folder / "table.csv"), "columns": {"photo": "image"}, "image_size": SIDE}
    cache = {"cache": str(folder / "cache")}
    return TrialSpec(
        dataset=ComponentSpec("manifest", {**table, **cache, **options}),
        encoders={
            "photo": ComponentSpec("torchvision", {"model": "resnet18", "weights": "none", "size": SIDE})
        },
        adapters={"photo": ComponentSpec("full")},
        strategy=ComponentSpec("zero_fill"),
        fusion=ComponentSpec("concat"),
        fusion_adapter=ComponentSpec("full"),
        procedure=ComponentSpec("joint"),
        training=TrainingSpec(epochs=1, batch_size=BATCH, learning_rate=1e-3),
        missing=MissingSpec(ComponentSpec("per_modality")),
    )


def write_files(folder: Path) -> None:
    """Write photos of two classes, smooth with some grain as photos are, and their table."""
    draw = np.random.default_rng(0)
    lines = ["photo,label,split"]
    for split, count in FILES.items():
        for number in range(count):
            label = "ab"[number % 2]
            path = folder / split / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            rough = Image.fromarray(draw.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((640, 480))
            grain = draw.normal(0, 6, (480, 640, 3))
            Image.fromarray((np.asarray(rough) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
            lines.append(f"{path.relative_to(folder)},{label},{split}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")


def train(bench: Bench, known: TrialSpec, batches: Iterable[Batch]) -> Epoch:
    """Train an epoch by mmx's loop; measure it, and what of it goes by until the next batch is there."""
    waited = 0.0

    def watched() -> Iterator[Batch]:
        nonlocal waited
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    torch.manual_seed(0)
    model = bench.model(known).to(DEVICE)
    course = Course(model, bench.procedure(known, model), known.training, FILES["train"], DEVICE, 0.0)
    started = time.perf_counter()
    course.train(watched())
    return Epoch(time.perf_counter() - started, waited)


def by_peer(folder: Path, workers: int) -> Iterator[Batch]:
    """Give the batches of an ImageFolder."""
    steps = [v2.Resize(SIDE, v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIDE), v2.PILToTensor()]
    files = ImageFolder(str(folder / "train"), v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)]))
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=workers, pin_memory=DEVICE.type == "cuda")
    for images, target in loader:
        here = torch.ones(len(target), dtype=torch.bool)
        yield Batch({"photo": images}, {"photo": here}, target, [""] * len(target))


def measure(bench: Bench, folder: Path, workers: int) -> dict[str, Epoch]:
    """Train an epoch in each way, one after another."""
    cached, plain = photos(folder), photos(folder, cache_gigabytes=0.0)
    order = shuffled(FILES["train"], 0, workers)

    def batches(known: TrialSpec) -> Iterable[Batch]:
        split: Split = bench.split(known, "train")
        return split.batches(order, BATCH, split.natural, workers)

    shutil.rmtree(folder / "cache" / "decoded", ignore_errors=True)
    ways: dict[str, tuple[TrialSpec, Callable[[], Iterable[Batch]]]] = {
        "cache, cold": (cached, lambda: batches(cached)),
        "cache, warm": (cached, lambda: batches(cached)),
        "decoded each time": (plain, lambda: batches(plain)),
        "ImageFolder": (plain, lambda: by_peer(folder, workers)),
    }
    return {name: train(bench, known, source()) for name, (known, source) in ways.items()}


def main() -> None:
    """Measure in turns and print the shares."""
    bench = Bench(Registry.load())
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        measure(bench, Path(name), 0)  # warm-up
        rounds = [{n: measure(bench, Path(name), n) for n in WORKERS} for _ in range(ROUNDS)]
    for workers in WORKERS:
        for way in rounds[0][workers]:
            best = min((found[workers][way] for found in rounds), key=lambda epoch: epoch.seconds)
            print(f"{workers} loader processes, {way}: {best.share:.1%} of {best.seconds:.2f} s waiting")


if __name__ == "__main__":
    main()
