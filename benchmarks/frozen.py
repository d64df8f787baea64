"""What keeping frozen outputs saves: a sweep with `training.frozen_cache_gigabytes` against one without.

Three strategies and two seeds on digits, five epochs, without stores: encoders frozen, and LoRA in the last
of four blocks. The cache is empty at the start of each sweep, so the first trial's filling counts.

Run: python benchmarks/frozen.py
"""

import os
import tempfile
import time
from dataclasses import replace

import torch
from overhead import spec as quick_start

from mmx.config import ComponentSpec, TrialSpec
from mmx.registry import Registry
from mmx.trial import Bench, run_trial

EPOCHS = 5
SEEDS = (0, 1)
STRATEGIES = ("zero_fill", "mean_fill", "modality_dropout")
ADAPTERS = {
    "frozen encoders": ComponentSpec("frozen"),
    "LoRA in the last block": ComponentSpec("lora", {"rank": 8, "targets": r"transformer\.blocks\.3\..*"
                                                     r"(query|key|value|output)"}),
}  # fmt: skip


def spec(adapter: ComponentSpec = ADAPTERS["frozen encoders"], gigabytes: float = 1.0) -> TrialSpec:
    """The quick start's model with other adapters."""
    own = quick_start()
    training = replace(own.training, epochs=EPOCHS, frozen_cache_gigabytes=gigabytes)
    return replace(own, adapters=dict.fromkeys(own.adapters, adapter), training=training)


def sweep(bench: Bench, adapter: ComponentSpec, gigabytes: float) -> list[float]:
    """Run the trials one after another; give the seconds of each."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for name in STRATEGIES:
            for seed in SEEDS:
                trial = replace(spec(adapter, gigabytes), strategy=ComponentSpec(name), seed=seed)
                started = time.perf_counter()
                run_trial(trial, bench, torch.device("cpu"))
                seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Run each sweep without and with the cache; print times and ratios."""
    bench = Bench(Registry.load())
    run_trial(replace(spec(gigabytes=0), training=replace(spec(gigabytes=0).training, epochs=1)), bench,
              torch.device("cpu"))  # fmt: skip  # warm-up
    for name, adapter in ADAPTERS.items():
        without, kept = sweep(bench, adapter, 0), sweep(bench, adapter, 1)
        print(
            f"{name}: {sum(without):.1f} s without, {sum(kept):.1f} s with the cache, "
            f"{sum(without) / sum(kept):.1f} times as fast; a trial {sum(without) / len(without):.2f} s, "
            f"the first {kept[0]:.2f} s, the later {sum(kept[1:]) / len(kept[1:]):.2f} s"
        )


if __name__ == "__main__":
    main()
