"""Laws of datasets, protocols and trackers."""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mmx.contracts import Dataset, Presence, Tracker, TrialRecord
from mmx.data import Split
from mmx.errors import DataError
from mmx.protocols import all_patterns, draw_presence
from mmx.registry import Offer, Registry
from mmx.testing import world
from mmx.testing.laws import NotHere

SPLITS = ("train", "val", "test")


def _dataset(registry: Registry, offer: Offer) -> Dataset:
    try:
        dataset: Dataset = world.build(registry, offer, {})
        dataset.split("test")
    except DataError as error:
        raise NotHere(f"its data is not on this disk: {str(error).splitlines()[0]}") from error
    return dataset


def dataset_splits_share_no_sample(registry: Registry, offer: Offer) -> None:
    """Ids are unique and no id stands in two splits."""
    dataset = _dataset(registry, offer)
    ids = {name: [s.id for s in dataset.split(name)] for name in SPLITS}
    assert all(ids.values())
    everything = [i for found in ids.values() for i in found]
    assert len(set(everything)) == len(everything)


def dataset_samples_fit_their_description(registry: Registry, offer: Offer) -> None:
    """Inputs are finite, of one shape, of declared modalities; targets fit the task; a card is there."""
    dataset = _dataset(registry, offer)
    assert dataset.card is not None and dataset.card.source and dataset.card.licence
    for name in SPLITS:
        split = Split(dataset, name, tuple(dataset.modalities))
        batch = split.batch(torch.arange(min(8, len(split))), split.natural)
        assert set(batch.inputs) == set(dataset.modalities)
        for raw in batch.inputs.values():
            assert isinstance(raw, Tensor) and bool(torch.isfinite(raw.float()).all())
        logits = torch.zeros(len(batch.ids), dataset.task.out)
        assert bool(torch.isfinite(dataset.task.loss(logits, batch.target)))


def dataset_reads_the_same_twice(registry: Registry, offer: Offer) -> None:
    """A second instance gives the same samples, in any order of access."""
    first, again = _dataset(registry, offer).split("val"), _dataset(registry, offer).split("val")
    for i in reversed(range(min(5, len(first)))):
        assert first[i].id == again[i].id
        assert all(torch.equal(first[i].inputs[m], again[i].inputs[m]) for m in first[i].inputs)


def protocol_keeps_its_word(registry: Registry, offer: Offer) -> None:
    """Masks are pure, nested across rates and never take all; weights add to one and agree with the draws."""
    ids = [f"id{i}" for i in range(4000)]
    for count in (2, 3):
        modalities = world.names(count)
        protocol = world.build(registry, offer, {"modalities": modalities, "seed": 0})
        natural = {m: torch.ones(len(ids), dtype=torch.bool) for m in modalities}
        previous = None
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            rate = share * protocol.highest_rate(modalities)
            drawn = draw_presence(protocol, rate, ids, natural, seed=3)
            shuffled = protocol.draw(rate, ids[::-1], modalities, 3)
            stacked = torch.stack([drawn[m] for m in modalities])
            assert bool(stacked.any(dim=0).all()), "a mask took all"
            assert all(torch.equal(drawn[m], shuffled[m].flip(0)) for m in modalities), "order mattered"
            if previous is not None:
                assert bool((stacked <= previous).all()), "masks are not nested"
            previous = stacked
            _assert_weights_agree(protocol.weights(rate, modalities), drawn, len(ids))


def _assert_weights_agree(weights: Mapping[frozenset[str], float], drawn: Presence, count: int) -> None:
    assert abs(sum(weights.values()) - 1) < 1e-9
    assert all(w >= -1e-12 and pattern for pattern, w in weights.items())
    for pattern in all_patterns(tuple(drawn)):
        share = float(torch.stack([drawn[m] == (m in pattern) for m in drawn]).all(dim=0).double().mean())
        expected = weights.get(pattern, 0.0)
        # Five standard deviations of a binomial share.
        assert abs(share - expected) <= 5 * math.sqrt(max(expected * (1 - expected), 1e-12) / count) + 1e-9


def tracker_remembers(registry: Registry, offer: Offer) -> None:
    """A trial's state, parameters, figures, curves and files come back; what is not finite is left out."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        cls = registry.load_class("tracker", f"{offer.distribution}:{offer.component.name}")
        tracker: Tracker = cls(store=f"sqlite:///{folder}/store.db")
        tracker.open_sweep("conformance", {"note": "x"})
        record = TrialRecord("", "point", 1, "running", "", "cell", 2, {"strategy": "skip"})
        log = tracker.open_trial("title", record)
        assert [r.state for r in tracker.records("conformance")] == ["running"]
        log.metrics({"robustness/accuracy_missing_any": 0.5, "bad": float("nan")}, 30)
        log.metrics({"robustness/accuracy_missing_any": 0.4}, 50)
        (folder / "file.txt").write_text("kept", encoding="utf-8")
        log.artifact(folder / "file.txt")
        log.end("done", "because", {"mmx.mask_sha": "abc"})
        (found,) = tracker.records("conformance")
        assert (found.point, found.seed, found.state, found.cell, found.attempt) == (
            "point",
            1,
            "done",
            "cell",
            2,
        )
        assert found.params["strategy"] == "skip" and "bad" not in found.metrics
        assert tracker.history(found.run_id, "robustness/accuracy_missing_any") == {30: 0.5, 50: 0.4}
        tracker.close_sweep({"best": {0: 1.0}}, [folder / "file.txt"], ["strategy"], "done")
        assert tracker.find_sweeps() == ["conformance"]
        tracker.retire(found)
        assert tracker.records("conformance") == []
