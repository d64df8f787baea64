"""What absence saves: an epoch of training at 30, 50 and 70 % missing, against one with everything there.

Rows that lack a modality are not encoded, so an epoch should take about the share of inputs that are there.
The quick start's model on digits, epochs in turns in one process; medians.

Run: python benchmarks/absence.py
"""

import statistics

import torch
from overhead import spec

from mmx.protocols import draw_presence
from mmx.registry import Registry
from mmx.train import Monitor, fit
from mmx.trial import Bench

ROUNDS = 5
RATES = (0.0, 0.3, 0.5, 0.7)


def epoch(bench: Bench, rate: float) -> tuple[float, float]:
    """Train an epoch at a missing rate; give its seconds, and the share of inputs that were there."""
    split, model = bench.split(spec(), "train"), bench.model(spec())
    protocol = bench.protocol(spec())
    presence = draw_presence(protocol, rate, split.ids, split.natural, 0, "train")
    share = torch.stack(list(presence.values())).double().mean()
    monitor = Monitor("val/loss", higher_is_better=False)
    done = fit(
        model, bench.procedure(spec(), model), split, presence, spec().training, monitor,
        lambda: {"val/loss": 0.0}, 0, torch.device("cpu"),
    )  # fmt: skip
    return done.seconds, float(share)


def main() -> None:
    """Measure in turns and print the ratios."""
    bench = Bench(Registry.load())
    epoch(bench, 0.0)  # warm-up
    rounds = [[epoch(bench, rate) for rate in RATES] for _ in range(ROUNDS)]
    seconds = [statistics.median(found[i][0] for found in rounds) for i in range(len(RATES))]
    for i, rate in enumerate(RATES):
        there = rounds[0][i][1]
        print(f"{rate:.0%} missing: {seconds[i]:.2f} s an epoch, {seconds[i] / seconds[0]:.2f} of complete; "
              f"{there:.2f} of the inputs are there")  # fmt: skip


if __name__ == "__main__":
    main()
