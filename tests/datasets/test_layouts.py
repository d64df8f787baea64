"""Published layouts: each reader on a small excerpt, made here in the layout that its head describes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmx.contracts import Dataset
from mmx.data import Split
from mmx.errors import DataError
from mmx.registry import Registry
from mmx.testing import CHECKS
from mmx_datasets.ave import Ave
from mmx_datasets.crema_d import CremaD
from mmx_datasets.food101 import Food101
from mmx_datasets.hateful_memes import HatefulMemes
from mmx_datasets.kinetics_sounds import KineticsSounds
from mmx_datasets.mm_imdb import MmImdb
from mmx_datasets.mvsa_single import MvsaSingle

SMALL: Mapping[str, Any] = {"image_size": 4, "cache_gigabytes": 0.0}


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (200, 10, 10)).save(path, format="PNG")


def frames(folder: Path, count: int = 2) -> None:
    for k in range(count):
        image(folder / f"{k:05d}.jpg")


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(-0.5, 0.5, 800), 8000)


def lines(path: Path, *given: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in given), encoding="utf-8")


def crema_d(root: Path) -> None:
    for actor in range(1001, 1021):
        for emotion in ("ANG", "NEU"):
            clip = f"{actor}_IEO_{emotion}_XX"
            sound(root / "AudioWAV" / f"{clip}.wav")
            frames(root / "Image-01-FPS" / clip)


def kinetics_sounds(root: Path) -> None:
    for split, count in (("train", 24), ("test", 3)):
        clips = [f"{split}-id{k}_{k}" for k in range(count)]
        lines(root / f"my_{split}.txt", *(f"{clip},10,{30 - k}" for k, clip in enumerate(clips)))
        for clip in clips:
            frames(root / split / clip)
            sound(root / split / clip / f"{clip}.wav")


def ave(root: Path) -> None:
    categories = [f"Category {k:02d}" for k in range(28)]
    rows = [f"{category}&id{k}&good&0&10" for k, category in enumerate(categories)]
    rows.append("Category 03&id5&good&2&4")  # a second event in a clip
    lines(root / "Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime", *rows)
    lines(root / "trainSet.txt", *rows[:20])
    lines(root / "valSet.txt", *rows[20:24])
    lines(root / "testSet.txt", *rows[24:])
    for k in range(28):
        sound(root / "audio" / f"id{k}.wav")
        frames(root / "visual" / f"id{k}")


def food101(root: Path) -> None:
    classes = [f"dish_{k:03d}" for k in range(101)]
    for part, count in (("train", 101), ("test", 5)):
        rows = [f'{c}_{part}.jpg,"{c}, the best recipe",{c}' for c in classes[:count]]
        lines(root / "texts" / f"{part}_titles.csv", *rows)
        for c in classes[:count]:
            image(root / "images" / part / c / f"{c}_{part}.jpg")


def mm_imdb(root: Path) -> None:
    films = [f"{k:07d}" for k in range(9)]
    split = {"train": films[:5], "dev": films[5:7], "test": films[7:]}
    lines(root / "split.json", json.dumps(split))
    for k, film in enumerate(films):
        image(root / "dataset" / f"{film}.jpeg")
        facts = {"plot": ["Short.", f"A longer plot of {k}."], "genres": ["Drama", "Film-Noir", "News"]}
        lines(root / "dataset" / f"{film}.json", json.dumps(facts))


def mvsa_single(root: Path) -> None:
    rules = [
        "positive,positive",
        "neutral,positive",
        "negative,neutral",
        "neutral,neutral",
        "positive,negative",
    ]
    lines(root / "labelResultAll.txt", "ID\ttext,image", *(f"{k}\t{rules[k % 5]}" for k in range(100)))
    for k in range(100):
        image(root / "data" / f"{k}.jpg")
        (root / "data" / f"{k}.txt").write_bytes(b"a caf\xe9 tweet")


def hateful_memes(root: Path) -> None:
    for number, name in enumerate(("train", "dev_seen", "test_seen")):
        rows = [{"id": 10 * number + k, "img": f"img/{10 * number + k}.png", "label": k % 2, "text": "words"}
                for k in range(4)]  # fmt: skip
        lines(root / f"{name}.jsonl", *map(json.dumps, rows))
        for row in rows:
            image(root / row["img"])


@dataclass(frozen=True)
class Excerpt:
    """What is made, and what must come of it."""

    make: Callable[[Path], None]
    dataset: type[Dataset]
    kinds: tuple[str, ...]
    count: int
    one: tuple[str, Any]
    """Id and target of one sample."""


AUDIO_VISUAL, IMAGE_TEXT = ("audio", "video"), ("image", "text")
EXCERPTS = {
    "crema_d": Excerpt(crema_d, CremaD, AUDIO_VISUAL, 40, ("1011_IEO_ANG_XX", 5)),
    "kinetics_sounds": Excerpt(kinetics_sounds, KineticsSounds, AUDIO_VISUAL, 27, ("test-id0_0", 30)),
    "ave": Excerpt(ave, Ave, AUDIO_VISUAL, 29, ("id24/Category 24/0-10", 24)),
    "food101": Excerpt(food101, Food101, IMAGE_TEXT, 106, ("dish_000_test.jpg", 0)),
    "mm_imdb": Excerpt(mm_imdb, MmImdb, IMAGE_TEXT, 9, ("0000007", [0, 22])),
    "mvsa_single": Excerpt(mvsa_single, MvsaSingle, IMAGE_TEXT, 80, ("0", 2)),
    "hateful_memes": Excerpt(hateful_memes, HatefulMemes, IMAGE_TEXT, 12, ("20", 0)),
}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one excerpt of each dataset."""
    folder = tmp_path_factory.mktemp("layouts")
    for name, excerpt in EXCERPTS.items():
        excerpt.make(folder / name)
    return folder


def opened(name: str, root: Path, **options: Any) -> Dataset:
    return EXCERPTS[name].dataset(**{"root": str(root), **SMALL, **options})


def lists_of(name: str, root: Path) -> dict[str, Sequence[str]]:
    dataset = opened(name, root)
    return {split: [sample.id for sample in dataset.split(split)] for split in SPLITS}


@pytest.mark.parametrize("name", EXCERPTS)
def test_all_laws_of_datasets_hold_on_an_excerpt(home: Path, registry: Registry, name: str) -> None:
    offer = next(o for o in registry.offers if o.kind == "dataset" and o.component.name == name)
    options = {**SMALL, "root": str(home / name)}
    made = replace(offer, component=replace(offer.component, example=options))
    for law in CHECKS["dataset"]:
        law(registry, made)


@pytest.mark.parametrize("name", EXCERPTS)
def test_the_excerpt_is_read_whole(home: Path, name: str) -> None:
    expected, dataset = EXCERPTS[name], opened(name, home / name)
    assert tuple(dataset.modalities.values()) == expected.kinds
    assert sum(len(dataset.split(split)) for split in SPLITS) == expected.count
    identity, target = expected.one
    found = {s.id: s for split in SPLITS for s in dataset.split(split)}[identity].target
    assert (np.flatnonzero(found).tolist() if isinstance(target, list) else found) == target


@pytest.mark.parametrize("name", EXCERPTS)
def test_a_folder_of_all_datasets_is_a_root_too(home: Path, name: str) -> None:
    assert lists_of(name, home) == lists_of(name, home / name)


@pytest.mark.parametrize("name", EXCERPTS)
def test_data_that_is_not_there_is_told_with_what_is_needed(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no .* under root .*mmx data prepare {name}"):
        opened(name, tmp_path)
    told = EXCERPTS[name].dataset.prepare(tmp_path)
    assert "Get " in told and len(told.splitlines()) >= 3


@pytest.mark.parametrize("name", EXCERPTS)
def test_a_missing_file_is_refused_or_absent(tmp_path: Path, name: str) -> None:
    expected = EXCERPTS[name]
    expected.make(tmp_path)
    kind = {"audio": "*.wav", "image": None}[expected.kinds[0]]
    media = sorted(
        path for path in tmp_path.rglob(kind or "*") if path.suffix in {".wav", ".jpg", ".jpeg", ".png"}
    )
    media[0].unlink()
    with pytest.raises(DataError, match=rf"{name}: 1 files are not there, such as '.*{media[0].name}'"):
        opened(name, tmp_path).split("train")
    dataset = opened(name, tmp_path, missing_files="absent")
    absent = [
        (~Split(dataset, split, tuple(dataset.modalities)).natural[next(iter(dataset.modalities))])
        .sum()
        .item()
        for split in SPLITS
    ]
    assert sum(absent) == 1


def test_crema_d_deals_actors_out_so_that_none_is_in_two_splits(home: Path) -> None:
    actors = {split: {i[:4] for i in ids} for split, ids in lists_of("crema_d", home).items()}
    assert len(set.union(*actors.values())) == sum(map(len, actors.values())) == 20


def test_crema_d_takes_the_lists_that_lie_there(tmp_path: Path) -> None:
    crema_d(tmp_path)
    clips = [f"{actor}_IEO_ANG_XX" for actor in range(1001, 1021)]
    lines(tmp_path / "train.csv", *(f"{clip},ANG" for clip in clips[:18]))
    lines(tmp_path / "test.csv", *(f"{clip},ANG" for clip in clips[18:]))
    found = lists_of("crema_d", tmp_path)
    assert found["test"] == clips[18:]
    assert sorted([*found["train"], *found["val"]]) == clips[:18]


def test_crema_d_names_an_emotion_that_is_none(tmp_path: Path) -> None:
    crema_d(tmp_path)
    lines(tmp_path / "train.csv", "1001_IEO_ANG_XX,ANGER")
    lines(tmp_path / "test.csv", "1002_IEO_ANG_XX,ANG")
    with pytest.raises(DataError, match=r"train.csv: 'ANGER' is no class. Did you mean 'ANG'\?"):
        opened("crema_d", tmp_path).split("train")


def test_validation_is_carved_out_of_training_by_ids_alone(home: Path) -> None:
    ids = {share: lists_of_share(home, share) for share in (0.1, 0.3)}
    assert ids[0.1] < ids[0.3]


def lists_of_share(home: Path, share: float) -> set[str]:
    dataset = opened("kinetics_sounds", home, val_share=share)
    return {sample.id for sample in dataset.split("val")}


def test_the_middle_frame_may_stand_for_the_film(home: Path) -> None:
    sample = opened("ave", home, visual_as="image").split("test")[0]
    assert sample.inputs["visual"].shape == (3, 4, 4)


def test_kinetics_sounds_refuses_a_class_that_is_none(tmp_path: Path) -> None:
    kinetics_sounds(tmp_path)
    lines(tmp_path / "my_test.txt", "test-id0_0,10,31")
    with pytest.raises(DataError, match=r"class '31' of 'test-id0_0' in my_test.txt"):
        opened("kinetics_sounds", tmp_path).split("test")


def test_a_list_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    kinetics_sounds(tmp_path)
    lines(tmp_path / "my_test.txt", "../../secret,10,3")
    with pytest.raises(DataError, match=r"'\.\./\.\./secret' of a list leaves the folder"):
        opened("kinetics_sounds", tmp_path).split("test")


def test_food101_takes_split_json_and_knows_photos_without_a_title(tmp_path: Path) -> None:
    food101(tmp_path)
    image(tmp_path / "images/train/dish_000/dish_000_77.jpg")
    given = {"train": ["dish_000_train.jpg", "dish_000_77.jpg"], "dev": ["dish_001_train.jpg"],
             "test": ["dish_003_test.jpg"]}  # fmt: skip
    lines(tmp_path / "split.json", json.dumps(given))
    found = lists_of("food101", tmp_path)
    assert found == {"train": given["train"], "val": given["dev"], "test": given["test"]}
    assert list(opened("food101", tmp_path).split("train")[1].inputs) == ["image"]


def test_mm_imdb_reads_the_folders_of_missing_aware_prompts(tmp_path: Path) -> None:
    mm_imdb(tmp_path)
    for folder, ending in (("images", "jpeg"), ("labels", "json")):
        (tmp_path / folder).mkdir()
        for path in (tmp_path / "dataset").glob(f"*.{ending}"):
            path.rename(tmp_path / folder / path.name)
    (tmp_path / "dataset").rmdir()
    assert len(lists_of("mm_imdb", tmp_path)["train"]) == 5


def test_mm_imdb_takes_the_longest_plot(home: Path) -> None:
    dataset = opened("mm_imdb", home)
    ids = dataset.split("test")[0].inputs["text"]
    assert (ids != 0).sum() == 6  # a longer plot of 7 .


def test_mvsa_single_leaves_out_tweets_that_contradict_themselves(home: Path) -> None:
    found = {i for ids in lists_of("mvsa_single", home).values() for i in ids}
    assert found == {str(k) for k in range(100) if k % 5 != 4}


def test_mvsa_single_takes_the_lists_of_qmf(tmp_path: Path) -> None:
    mvsa_single(tmp_path)
    for name, tweet in (("train", 0), ("dev", 1), ("test", 4)):
        lines(
            tmp_path / f"{name}.jsonl", json.dumps({"id": tweet, "label": "neutral", "text": "", "img": ""})
        )
    assert lists_of("mvsa_single", tmp_path) == {"train": ["0"], "val": ["1"], "test": ["4"]}


def test_mvsa_single_reads_text_of_any_encoding(home: Path) -> None:
    texts = opened("mvsa_single", home).split("train")
    assert torch.equal(texts[0].inputs["text"], texts[1].inputs["text"])


def test_hateful_memes_without_labels_say_which_file_has_them(tmp_path: Path) -> None:
    hateful_memes(tmp_path)
    (tmp_path / "test_seen.jsonl").unlink()
    lines(tmp_path / "test.jsonl", json.dumps({"id": 1, "img": "img/1.png", "text": "words"}))
    with pytest.raises(DataError, match=r"test.jsonl' has no labels; get test_seen.jsonl"):
        opened("hateful_memes", tmp_path).split("test")


@pytest.mark.parametrize("name", EXCERPTS)
def test_every_card_says_what_a_reader_must_know(name: str) -> None:
    card = EXCERPTS[name].dataset.card
    assert card is not None
    assert all((card.description, card.source, card.licence, card.citation, card.sizes, card.natural_missing))
    assert "Splits: " in card.description
