"""Cost of the whole robustness evaluation against one clean pass over the test split.

The whole is: every availability pattern of every sample, and every curve over rates and targets of every
score. A clean pass is one forward pass over complete rows.

Run: python benchmarks/evaluation.py
"""

import statistics
import time
from dataclasses import replace

import torch
from overhead import spec

from mmx.config import ComponentSpec, EvalMissingSpec, MissingSpec
from mmx.evaluate import predict_patterns, validate
from mmx.registry import Registry
from mmx.trial import Bench, Outcome, tell

ROUNDS = 7
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TARGETS = ("any", "image", "audio")
DEVICE = torch.device("cpu")


def main() -> None:
    """Measure in turns and print a ratio a strategy."""
    bench = Bench(Registry.load())
    evaluated = MissingSpec(ComponentSpec("per_modality"), eval=EvalMissingSpec(RATES, TARGETS))
    for strategy in ("skip", "zero_fill", "mean_fill", "mask_token", "prompt"):
        trial = replace(spec(), strategy=ComponentSpec(strategy), missing=evaluated)
        model, split = bench.model(trial), bench.split(trial, "test")
        clean, grid = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            validate(model, split, split.natural, DEVICE, 256)
            middle = time.perf_counter()
            predictions = predict_patterns(model, split, DEVICE, 256)
            tell(trial, bench.protocol(trial), predictions, split.task, Outcome())
            grid.append(time.perf_counter() - middle)
            clean.append(middle - started)
        whole, once = statistics.median(grid), statistics.median(clean)
        cells = len(RATES) * len(TARGETS)
        print(
            f"{strategy:<10} {cells} cells {whole:.3f} s, clean pass {once:.3f} s, ratio {whole / once:.2f}"
        )


if __name__ == "__main__":
    main()
