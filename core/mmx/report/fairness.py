"""What makes a comparison unfair: told beside it, since no test mends it."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from mmx.contracts import TrialRecord
from mmx.report.results import Results
from mmx.report.standings import PRUNED, Standing

EPOCHS = re.compile(r"(?:^| )epochs=(\d+)")
BUDGET = ("training.epochs", "training.batch_size")


def warnings_of(results: Results) -> list[str]:
    """List what was not the same for the sides of the first table: tries, seeds, masks, failures, budget."""
    best = results.best(results.chief)
    own = {
        label: [r for r in results.records if _side(r, results.chief) == label and _fits(r, results)]
        for label in dict.fromkeys(_side(r, results.chief) for r in results.records)
    }
    told = [
        _different(_tries(own), "points tried", "the more are tried, the better the best of them looks"),
        _different({n: _seeds(s) for n, s in best.items()}, "seeds", "run the missing ones"),
        _different({n: _masks(s) for n, s in best.items()}, "evaluation masks", "others are absent"),
        _different(
            _budgets(results, best), "training budgets", "the better one may only have trained longer"
        ),
    ]
    return [*filter(None, told), *_broken(own), *_alone(best)]


def _side(record: TrialRecord, axis: str) -> str:
    return record.params.get(axis, "none")


def _fits(record: TrialRecord, results: Results) -> bool:
    return record.point not in {s.point for s in results.left_out}


def _different(by_side: Mapping[str, str], what: str, why: str) -> str:
    """Tell of what is not the same on all sides; empty: it is."""
    sides: dict[str, list[str]] = {}
    for side, value in by_side.items():
        sides.setdefault(value, []).append(side)
    if len(sides) < 2:
        return ""
    told = "; ".join(f"{value} ({', '.join(names)})" for value, names in sides.items())
    return f"{what} differ: {told}: {why}"


def _tries(own: Mapping[str, Sequence[TrialRecord]]) -> dict[str, str]:
    """Count the different points of each side that were begun, pruned ones included."""
    return {side: str(len({r.point for r in records})) for side, records in own.items()}


def _seeds(standing: Standing) -> str:
    return ", ".join(str(r.seed) for r in sorted(standing.records, key=lambda r: r.seed))


def _masks(standing: Standing) -> str:
    return ", ".join(sorted({r.masks[:8] for r in standing.records if r.masks})) or "unknown"


def _budgets(results: Results, best: Mapping[str, Standing]) -> dict[str, str]:
    """Give epochs (of all phases) and batch size of each side's best; nothing where the sweep varies them."""
    if set(BUDGET) & {*results.search.axes, *results.search.tune}:
        return {}
    return {side: _budget(s.params) for side, s in best.items()}


def _budget(params: Mapping[str, str]) -> str:
    phases = [v for k, v in params.items() if re.fullmatch(r"training\.phases\.\d+", k) and v != "none"]
    each = params.get("training.epochs", "")
    told = [found[1] if (found := EPOCHS.search(phase)) else each for phase in phases] or [each]
    epochs = sum(int(n) for n in told if n.isdigit())
    return f"{epochs} epochs of batches of {params.get('training.batch_size', '?')}"


def _broken(own: Mapping[str, Sequence[TrialRecord]]) -> list[str]:
    """Tell how many trials of each side failed or were pruned."""
    kinds: dict[str, Callable[[TrialRecord], bool]] = {
        "failed": lambda r: r.state == "failed",
        "pruned": lambda r: r.reason.startswith(PRUNED),
    }
    told = []
    for what, is_so in kinds.items():
        counts = {side: sum(map(is_so, records)) for side, records in own.items()}
        named = "; ".join(f"{side} {count}" for side, count in counts.items() if count)
        if named:
            told.append(f"trials that {'failed' if what == 'failed' else 'were pruned'}: {named}")
    return told


def _alone(best: Mapping[str, Standing]) -> list[str]:
    """Tell where the spread of seeds is not known, or only guessed at."""
    if not best:
        return []
    if any(s.seeds == 1 for s in best.values()):
        return ["with one seed the spread over seeds is unknown: another seed may turn any result around"]
    seeds = mean(s.seeds for s in best.values())
    few = f"{seeds:.0f} seeds tell little of the spread over seeds; intervals are too narrow below about five"
    return [few] if seeds < 5 else []
