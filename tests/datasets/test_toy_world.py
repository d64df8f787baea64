"""toy_world says how well any model could do; these tests hold it to that."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmx.errors import DataError
from mmx_datasets.toy_world import ToyWorld

BOTH = ("m0", "m1")


def stacked(samples, pattern):
    return {m: torch.stack([sample.inputs[m] for sample in samples]) for m in pattern}


def targets(samples):
    return np.array([sample.target for sample in samples])


def linear_accuracy(world, pattern):
    train, test = world.split("train"), world.split("test")
    flat = [torch.cat(list(stacked(split, pattern).values()), dim=1).numpy() for split in (train, test)]
    model = LogisticRegression(max_iter=500).fit(flat[0], targets(train))
    return model.score(flat[1], targets(test))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_has_as_many_vector_modalities_as_asked_for(count):
    world = ToyWorld(modality_count=count, train_size=3)
    assert world.modalities == {f"m{number}": "vector" for number in range(count)}
    assert {m: tuple(x.shape) for m, x in world.split("train")[0].inputs.items()} == dict.fromkeys(
        world.modalities, (16,)
    )


def test_a_sample_does_not_depend_on_sizes():
    small, large = ToyWorld(train_size=3).split("train"), ToyWorld(train_size=9).split("train")
    for one, other in zip(small, large, strict=False):
        assert (one.id, one.target) == (other.id, other.target)
        assert all(torch.equal(one.inputs[m], other.inputs[m]) for m in BOTH)


def test_another_seed_or_split_gives_other_samples():
    first = ToyWorld().split("train")[0].inputs["m0"]
    assert not torch.equal(first, ToyWorld(generator_seed=1).split("train")[0].inputs["m0"])
    assert not torch.equal(first, ToyWorld().split("val")[0].inputs["m0"])


def test_all_classes_are_about_equally_frequent():
    counts = np.bincount(targets(ToyWorld(train_size=2000).split("train")), minlength=4)
    assert counts.min() > 430


def test_redundant_information_survives_the_loss_of_any_modality():
    world = ToyWorld(modality_count=3, redundant=3.0, unique=0.0, synergy=0.0)
    accuracies = [world.bayes_accuracy(p) for p in (["m0"], ["m2"], ["m0", "m1", "m2"])]
    assert accuracies == pytest.approx([accuracies[0]] * 3)
    assert accuracies[0] > 0.9


def test_the_absent_redundant_part_is_a_linear_function_of_what_is_present():
    inputs = stacked(ToyWorld(redundant=3.0, unique=0.0, synergy=0.0).split("train"), BOTH)
    one, other = inputs["m0"].double(), inputs["m1"].double()
    correlations = torch.linalg.svdvals(torch.linalg.qr(one)[0].T @ torch.linalg.qr(other)[0])
    assert (correlations > 0.999).sum() == 4


def test_unique_information_is_lost_with_its_modality():
    world = ToyWorld(redundant=0.0, unique=2.0, synergy=0.0)
    one_bit = 0.97725  # the normal distribution function at 2
    assert world.bayes_accuracy(["m0"]) == pytest.approx(one_bit / 2, abs=0.005)
    assert world.bayes_accuracy(BOTH) == pytest.approx(one_bit**2, abs=0.005)


def test_a_modality_without_a_bit_of_its_own_has_no_unique_information():
    world = ToyWorld(modality_count=3, classes=4, redundant=0.0, unique=2.0, synergy=0.0)
    assert world.bayes_accuracy(["m2"]) == pytest.approx(0.25)


def test_synergy_needs_all_sharing_modalities():
    world = ToyWorld(modality_count=3, synergy_order=3, redundant=0.0, unique=0.0, synergy=6.0)
    assert world.bayes_accuracy(["m0", "m2"]) == pytest.approx(0.25)
    assert world.bayes_accuracy(["m0", "m1", "m2"]) > 0.98


def test_no_modality_means_chance():
    assert ToyWorld(classes=8, features=24).bayes_accuracy([]) == 1 / 8


@pytest.mark.parametrize("pattern", [("m0",), ("m1", "m2"), ("m0", "m1", "m2")])
def test_the_posterior_is_as_accurate_as_it_claims(pattern):
    world = ToyWorld(modality_count=3, classes=5, redundant=1.0, synergy=4.0, test_size=4000)
    test = world.split("test")
    right = world.posterior(stacked(test, pattern)).argmax(dim=1).numpy() == targets(test)
    assert right.mean() == pytest.approx(world.bayes_accuracy(pattern), abs=0.025)


def test_the_posterior_is_calibrated():
    world = ToyWorld(test_size=4000)
    test = world.split("test")
    claimed = world.posterior(stacked(test, BOTH))
    one_hot = torch.eye(4)[targets(test)]
    sure = claimed > 0.8
    assert float(one_hot[sure].mean()) == pytest.approx(float(claimed[sure].mean()), abs=0.02)


@pytest.mark.parametrize("pattern", [("m0",), ("m1",), BOTH])
def test_a_linear_model_comes_near_the_bayes_accuracy_without_synergy(pattern):
    world = ToyWorld(synergy=0.0, train_size=2000, test_size=3000)
    assert linear_accuracy(world, pattern) == pytest.approx(world.bayes_accuracy(pattern), abs=0.03)


def test_no_linear_model_reads_synergy():
    world = ToyWorld(redundant=0.0, unique=0.0, synergy=5.0, train_size=2000, test_size=2000)
    assert linear_accuracy(world, BOTH) < 0.3


def test_natural_absence_has_its_rate_and_spares_one_modality():
    samples = ToyWorld(modality_count=3, natural_missing=0.4, train_size=2000).split("train")
    counts = np.array([len(sample.inputs) for sample in samples])
    assert counts.min() == 1
    assert 1 - counts.mean() / 3 == pytest.approx(0.4 - 0.4**3 / 3, abs=0.02)


def test_natural_absence_leaves_what_is_there_untouched():
    whole, holed = (ToyWorld(natural_missing=rate).split("val") for rate in (0.0, 0.5))
    for one, other in zip(whole, holed, strict=True):
        assert all(torch.equal(one.inputs[m], x) for m, x in other.inputs.items())


@pytest.mark.parametrize(
    "options",
    [
        {"modality_count": 1},
        {"classes": 1},
        {"features": 8},
        {"noise": 0.0},
        {"natural_missing": 1.0},
        {"synergy_order": 3},
        {"redundant": -1.0},
        {"train_size": 0},
    ],
)
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(DataError, match=next(iter(options))):
        ToyWorld(**options)


def test_unknown_splits_and_modalities_are_refused():
    with pytest.raises(DataError, match=r"'valid'.*'val'"):
        ToyWorld().split("valid")
    with pytest.raises(DataError, match="'m7'"):
        ToyWorld().bayes_accuracy(["m7"])
