"""The dataset `digits`: what a user of a paired, noisy, small dataset relies on."""

from importlib.resources import as_file, files

import numpy as np
import pytest
import torch

from mmx.errors import DataError
from mmx_datasets.digits import Digits


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    """The clips file as it ships."""
    with as_file(files("mmx_datasets") / "data" / "spoken_digits.npz") as path:
        return dict(np.load(path, allow_pickle=False))


def test_clips_take_less_than_two_megabytes() -> None:
    with as_file(files("mmx_datasets") / "data" / "spoken_digits.npz") as path:
        assert path.stat().st_size < 2_000_000


def test_no_voice_is_heard_in_two_splits(clips: dict[str, np.ndarray]) -> None:
    voices = [set(clips["voice"][clips["split"] == split]) for split in ("train", "val", "test")]
    assert sum(map(len, voices)) == len(set.union(*voices))


def test_every_voice_says_every_digit_once(clips: dict[str, np.ndarray]) -> None:
    said = set(zip(clips["voice"].tolist(), clips["label"].tolist(), strict=True))
    assert len(said) == len(clips["label"]) == 10 * len(set(clips["voice"].tolist()))


def test_no_image_is_in_two_splits() -> None:
    ids = [sample.id for name in ("train", "val", "test") for sample in Digits().split(name)]
    assert len(set(ids)) == len(ids) == 1797


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_sizes_are_those_of_the_card(name: str) -> None:
    assert Digits.card is not None
    assert len(Digits().split(name)) == Digits.card.sizes[name]


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_splits_are_stratified(name: str) -> None:
    split = Digits().split(name)
    counts = np.bincount([sample.target for sample in split])
    assert counts.min() > 0.09 * len(split)


def test_samples_have_the_promised_shapes_and_ranges() -> None:
    sample = Digits(image_noise=0.0).split("train")[3]
    image, audio = sample.inputs["image"], sample.inputs["audio"]
    assert (image.shape, audio.shape) == ((1, 8, 8), (8000,))
    assert 0 <= image.min() <= image.max() <= 1 and 0.1 < audio.abs().max() <= 1


def test_same_seed_gives_identical_samples() -> None:
    first, again = Digits(pairing_seed=3).split("val")[5], Digits(pairing_seed=3).split("val")[5]
    assert first.id == again.id and first.target == again.target
    assert all(torch.equal(first.inputs[m], again.inputs[m]) for m in first.inputs)


def test_another_pairing_seed_gives_other_pairs_of_the_same_class() -> None:
    plain = {"image_noise": 0.0, "snr_db": 200.0, "max_shift": 0.0}
    one, other = (Digits(pairing_seed=seed, **plain).split("test") for seed in (0, 1))
    same = [torch.allclose(one[i].inputs["audio"], other[i].inputs["audio"], atol=1e-6) for i in range(50)]
    assert sum(same) < 25
    assert [one[i].target for i in range(50)] == [other[i].target for i in range(50)]


def test_noise_depends_neither_on_order_of_access_nor_on_global_state() -> None:
    forward = [sample.inputs["audio"] for sample in Digits().split("val")[:8]]
    torch.manual_seed(99)
    backward = [Digits().split("val")[i].inputs["audio"] for i in reversed(range(8))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_reading_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    Digits().split("test")[0]
    assert torch.equal(before, torch.get_rng_state())


def test_noise_has_the_asked_strength() -> None:
    options = {"max_shift": 0.0, "image_noise": 0.2}
    noisy = Digits(snr_db=200.0, **options).split("train")
    clean = Digits(snr_db=200.0, max_shift=0.0, image_noise=0.0).split("train")
    difference = torch.stack([noisy[i].inputs["image"] - clean[i].inputs["image"] for i in range(100)])
    assert difference.std().item() == pytest.approx(0.2, rel=0.05)


def test_unknown_split_is_named_in_the_message() -> None:
    with pytest.raises(DataError, match="'dev'"):
        Digits().split("dev")
