"""avmnist on the real recordings and images."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mmx_datasets.avmnist import AvMnist
from mmx_datasets.avmnist_prepare import FSDD_SAMPLES_SHA256

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(shared_data):
    folder = shared_data / "avmnist"
    if not folder.is_dir():
        pytest.skip(f"no avmnist: '{folder}' is not there")
    return str(folder)


@pytest.fixture(scope="module")
def plain(root):
    dataset = AvMnist(root=root)
    return {split: dataset.split(split) for split in SPLITS}


@pytest.fixture(scope="module")
def hard(root):
    dataset = AvMnist(root=root, difficulty="hard")
    return dataset, {split: dataset.split(split) for split in SPLITS}


def image_accuracy(splits):
    def coarse(split):
        return np.stack([x.inputs["image"][0, ::2, ::2].flatten().numpy() for x in splits[split]])

    # One thread: with more, small steps wait for other busy processes (26 s instead of 1 s).
    with threadpool_limits(1):
        model = LogisticRegression(max_iter=300).fit(coarse("train"), [x.target for x in splits["train"]])
        return model.score(coarse("test"), [x.target for x in splits["test"]])


def test_the_official_rule_has_its_sizes_and_equal_classes(plain):
    counts = {split: np.bincount([x.target for x in samples]).tolist() for split, samples in plain.items()}
    assert counts == {"train": [240] * 10, "val": [30] * 10, "test": [150] * 10}


def test_the_card_tells_the_sizes(root, plain):
    assert AvMnist(root=root).card.sizes == {split: len(samples) for split, samples in plain.items()}


def test_no_image_or_recording_is_in_two_splits(plain):
    for place in (0, 1):
        parts = {split: {x.id.split("+")[place] for x in samples} for split, samples in plain.items()}
        assert not parts["train"] & parts["val"]
        assert not (parts["train"] | parts["val"]) & parts["test"]


def test_no_image_is_used_twice(plain):
    images = [x.id.split("+")[1] for samples in plain.values() for x in samples]
    assert len(images) == len(set(images))


def test_mnist_is_in_its_original_order(root):
    images = AvMnist(root=root).images
    assert images["train"].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_the_recordings_have_the_checksum_of_the_card(root):
    assert AvMnist(root=root).recordings.digest() == FSDD_SAMPLES_SHA256


def test_the_hard_cut_has_four_components(hard):
    assert len(hard[0].cut.components) == 4


def test_hard_images_tell_less_than_plain_ones(plain, hard):
    assert 0.5 < image_accuracy(hard[1]) < 0.7
    assert image_accuracy(plain) > 0.8


def test_hard_sounds_are_hardly_ever_clipped(hard):
    assert np.mean([float((x.inputs["audio"].abs() >= 1).float().mean()) for x in hard[1]["test"]]) < 1e-3


def test_smil_has_the_sizes_of_its_paper(root):
    dataset = AvMnist(root=root, split_rule="smil", audio_share=0.2)
    splits = {split: dataset.split(split) for split in SPLITS}
    assert {split: len(samples) for split, samples in splits.items()} == dataset.card.sizes
    assert sum("audio" in x.inputs for split in ("train", "val") for x in splits[split]) == 210
    assert all("audio" in x.inputs for x in splits["test"])
