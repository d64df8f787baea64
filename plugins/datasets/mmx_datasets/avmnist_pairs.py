"""Who is paired with whom in avmnist: images and recordings of one digit, by rule, never by chance of order.

Both rules give pairs that are a pure function of the pairing seed and of what there is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmx.errors import DataError
from mmx.protocols import uniforms
from mmx_datasets.avmnist_files import Images
from mmx_datasets.avmnist_sounds import Recording

Array = npt.NDArray[Any]

DIGITS = range(10)
ALL_RECORDINGS = 3_000
ALL_IMAGES = {"train": 60_000, "test": 10_000}
OFFICIAL_TEST_TAKES = 5
SMIL_TEST_TAKES = 15
SMIL_TAKES = 50
SMIL_SPEAKERS = ("jackson", "nicolas", "theo")


class Pair(NamedTuple):
    """An image of one part of MNIST by its index, and a recording by its own (None: no sound by nature)."""

    digit: int
    part: str
    image: int
    clip: int | None


Splits = dict[str, list[Pair]]


def official_pairs(
    images: Mapping[str, Images],
    recordings: Sequence[Recording],
    seed: int,
    val_takes: int,
    images_per_test_recording: int,
) -> Splits:
    """Pair every recording of FSDD; takes 0-4 are its test set, the next `val_takes` are held out.

    A recording that is not for test gets its own image of MNIST's training part; one for test gets
    `images_per_test_recording` images of its test part.
    """
    check_recordings(recordings)
    check_images(images)
    splits: Splits = {"train": [], "val": [], "test": []}
    first_train = OFFICIAL_TEST_TAKES + val_takes
    for digit in DIGITS:
        clips = [index for index, name in enumerate(recordings) if name.digit == digit]
        learn = [clip for clip in clips if recordings[clip].take >= OFFICIAL_TEST_TAKES]
        for clip, image in zip(learn, _images_for(images, "train", digit, seed, len(learn), 1), strict=True):
            split = "train" if recordings[clip].take >= first_train else "val"
            splits[split].append(Pair(digit, "train", image, clip))
        test = [clip for clip in clips if recordings[clip].take < OFFICIAL_TEST_TAKES]
        chosen = _images_for(images, "test", digit, seed, len(test), images_per_test_recording)
        repeated = [clip for clip in test for _ in range(images_per_test_recording)]
        splits["test"] += [Pair(digit, "test", i, clip) for clip, i in zip(repeated, chosen, strict=True)]
    return splits


def smil_pairs(
    images: Mapping[str, Images], recordings: Sequence[Recording], val_takes: int, audio_share: float
) -> Splits:
    """Pair as SMIL's code does (mengmenm/SMIL @0d0e827): 105 training and 45 test pairs a class.

    Images: the first 105 of a class in MNIST's training part and the last 45 in its test part, in the order
    of their numbers (from 0) as strings. Recordings: jackson, nicolas and theo, takes 0-14 for test. Image j
    of a class goes with recording j, in blocks of one speaker; the first k images have sound, k the multiple
    of 3 next to 105 * `audio_share`, at least 3. SMIL chooses on test; here 3 * `val_takes` pairs a class,
    evenly spread over the 105, are held out instead, with their sound or without.
    """
    check_images(images)
    places = {name: index for index, name in enumerate(recordings)}
    splits: Splits = {"train": [], "val": [], "test": []}
    learn = len(SMIL_SPEAKERS) * (SMIL_TAKES - SMIL_TEST_TAKES)
    held = {int((i + 0.5) * learn / (3 * val_takes)) for i in range(3 * val_takes)}
    takes = max(1, round(learn * audio_share / len(SMIL_SPEAKERS)))
    for digit in DIGITS:
        sounds: list[int | None] = [*_blocks(places, digit, range(SMIL_TEST_TAKES, SMIL_TEST_TAKES + takes))]
        sounds += [None] * (learn - len(sounds))
        for j, image in enumerate(_in_string_order(images["train"], digit)[:learn]):
            splits["val" if j in held else "train"].append(Pair(digit, "train", image, sounds[j]))
        test = _blocks(places, digit, range(SMIL_TEST_TAKES))
        chosen = _in_string_order(images["test"], digit)[-len(test) :]
        splits["test"] += [Pair(digit, "test", i, clip) for i, clip in zip(chosen, test, strict=True)]
    return splits


def check_images(images: Mapping[str, Images]) -> None:
    """Refuse an MNIST that is not whole (DataError)."""
    for part, count in ALL_IMAGES.items():
        found = (len(images[part].labels), len(images[part].pixels))
        if found != (count, count):
            raise DataError(
                f"avmnist: MNIST's part '{part}' has {found[0]} labels and {found[1]} images "
                f"instead of {count}; get it anew with `mmx data prepare avmnist`"
            )


def check_recordings(recordings: Sequence[Recording]) -> None:
    """Refuse an FSDD of fewer than its 3,000 recordings (DataError)."""
    if len(recordings) < ALL_RECORDINGS:
        raise DataError(
            f"avmnist: FSDD has {len(recordings)} recordings instead of {ALL_RECORDINGS}; "
            "take its folder away and get all with `mmx data prepare avmnist`"
        )


def _images_for(
    images: Mapping[str, Images], part: str, digit: int, seed: int, clips: int, each: int
) -> list[int]:
    """Deal a class's images out in the order of a hash of (seed, image), again from the start if too few."""
    numbers = np.flatnonzero(images[part].labels == digit)
    if len(numbers) < each:
        raise DataError(
            f"avmnist: {len(numbers)} images of digit {digit} in part '{part}' for {each} a recording"
        )
    drawn = uniforms([f"mnist/{part}/{number}" for number in numbers], seed, part, "avmnist/pairing")
    dealt: list[int] = numbers[np.argsort(drawn, kind="stable")].tolist()
    return [dealt[place % len(dealt)] for place in range(clips * each)]


def _in_string_order(images: Images, digit: int) -> list[int]:
    return sorted(np.flatnonzero(images.labels == digit).tolist(), key=str)


def _blocks(places: Mapping[Recording, int], digit: int, takes: range) -> list[int]:
    """Give the recordings of a class, one speaker after the other."""
    names = [Recording(digit, speaker, take) for speaker in SMIL_SPEAKERS for take in takes]
    lost = [name for name in names if name not in places]
    if lost:
        raise DataError(f"avmnist: recording '{lost[0].id}' is not there ({len(lost)} lost); get FSDD anew")
    return [places[name] for name in names]
