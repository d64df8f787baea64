"""Published layouts: each reader on a small excerpt, made here in the layout that its head describes."""

import importlib.util
import json
import shutil
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
from mmx_datasets.cmu_mosi import CmuMosei, CmuMosi
from mmx_datasets.crema_d import CremaD
from mmx_datasets.food101 import Food101
from mmx_datasets.hateful_memes import HatefulMemes
from mmx_datasets.iemocap import Iemocap
from mmx_datasets.kinetics_sounds import KineticsSounds
from mmx_datasets.mcubes import MCubeS
from mmx_datasets.mm_imdb import MmImdb
from mmx_datasets.mvsa_single import MvsaSingle
from mmx_datasets.nyud_v2 import NyudV2
from mmx_datasets.ucf101 import Ucf101

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


def film(path: Path) -> None:
    """Four frames and half a second of sound where PyAV is there to write and read them, else a mere file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no film")
    if importlib.util.find_spec("av") is None:
        return
    import av

    with av.open(str(path), "w") as file:
        pictures, tone = file.add_stream("mpeg4", rate=8), file.add_stream("aac", rate=16_000)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        for k in range(4):
            picture = np.full((32, 32, 3), 50 * k, dtype=np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        wave = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)
        heard = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        heard.sample_rate = 16_000
        file.mux(tone.encode(heard))
        file.mux(pictures.encode())
        file.mux(tone.encode())


def cmu(root: Path) -> None:
    rows = ["video_id,clip_id,text,label,annotation,mode"]
    for k, mode in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2):
        rows.append(f'film{k},{k},"well, it was {k}",{k / 2 - 1.5},Neutral,{mode}')
        film(root / "Raw" / f"film{k}" / f"{k}.mp4")
    lines(root / "label.csv", *rows)


def iemocap(root: Path) -> None:
    for session in range(1, 6):
        folder, dialog = root / f"Session{session}", f"Ses0{session}F_impro01"
        rated, said = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
        for k, emotion in enumerate(("neu", "exc", "hap", "xxx", "sad")):
            turn = f"{dialog}_F00{k}"
            rated += [
                f"[{k}.2901 - {k + 1}.2357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;\t()",
            ]
            said.append(f"{turn} [00{k}.2901-00{k + 1}.2357]: So it is {k}.")
            sound(folder / "sentences" / "wav" / dialog / f"{turn}.wav")
        lines(folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt", *rated)
        lines(folder / "dialog" / "transcriptions" / f"{dialog}.txt", *said, "M: yes")


def ucf101(root: Path) -> None:
    classes = [f"Action{k}" for k in range(101)]
    clips = {"train": [(c, f"v_{c}_g{g:02d}_c0{n}") for c in classes[:25] for g in (8, 9) for n in (1, 2)],
             "test": [(c, f"v_{c}_g01_c01") for c in classes[3:6]]}  # fmt: skip
    lines(root / "ucfTrainTestlist/classInd.txt", *(f"{k} {c}" for k, c in enumerate(classes, start=1)))
    for split, found in clips.items():
        number = " 1" if split == "train" else ""
        lines(root / f"ucfTrainTestlist/{split}list01.txt", *(f"{c}/{clip}.avi{number}" for c, clip in found))
        for _, clip in found:
            for folder in ("jpegs_256", "tvl1_flow/u", "tvl1_flow/v"):
                frames(root / folder / clip, 1)


def nyud_v2(root: Path) -> None:
    for split, count in (("train", 20), ("test", 2)):
        for scene in (f"scene{k}" for k in range(10)):
            for k in range(count // 2):
                path = root / split / scene / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                both = Image.new("RGB", (12, 6), (255, 0, 0))
                both.paste((0, 0, 255), (6, 0, 12, 6))
                both.save(path)


def mcubes(root: Path) -> None:
    names = [f"outscene1208_2_{k:010d}" for k in range(9)]
    for split, found in (("train", names[:5]), ("val", names[5:7]), ("test", names[7:])):
        lines(root / "list_folder" / f"{split}.txt", *found)
    for name in names:
        for folder, value in (("polL_aolp_sin", -1.0), ("polL_aolp_cos", 1.0), ("polL_dolp", 0.0)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{name}.npy", np.full((6, 6), value, dtype=np.float32))
        image(root / "polL_color" / f"{name}.png")
        for folder in ("NIR_warped", "GT"):
            (root / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6), 128 * 256, dtype=np.uint16)).save(root / "NIR_warped" / f"{name}.png")
        labels = np.repeat(np.array([0, 19, 255], dtype=np.uint8), 400).reshape(30, 40)
        labels[0, 0] = 7  # one pixel of 800: too few
        Image.fromarray(labels).save(root / "GT" / f"{name}.png")


@dataclass(frozen=True)
class Excerpt:
    """What is made, and what must come of it."""

    make: Callable[[Path], None]
    dataset: type[Dataset]
    kinds: tuple[str, ...]
    count: int
    one: tuple[str, Any]
    """Id and target of one sample."""
    absent: int = 1
    """How many inputs one missing file takes away."""


AUDIO_VISUAL, IMAGE_TEXT, SPOKEN = ("audio", "video"), ("image", "text"), ("text", "audio", "video")
EXCERPTS = {
    "crema_d": Excerpt(crema_d, CremaD, AUDIO_VISUAL, 40, ("1011_IEO_ANG_XX", 5)),
    "kinetics_sounds": Excerpt(kinetics_sounds, KineticsSounds, AUDIO_VISUAL, 27, ("test-id0_0", 30)),
    "ave": Excerpt(ave, Ave, AUDIO_VISUAL, 29, ("id24/Category 24/0-10", 24)),
    "food101": Excerpt(food101, Food101, IMAGE_TEXT, 106, ("dish_000_test.jpg", 0)),
    "mm_imdb": Excerpt(mm_imdb, MmImdb, IMAGE_TEXT, 9, ("0000007", [0, 22])),
    "mvsa_single": Excerpt(mvsa_single, MvsaSingle, IMAGE_TEXT, 80, ("0", 2)),
    "hateful_memes": Excerpt(hateful_memes, HatefulMemes, IMAGE_TEXT, 12, ("20", 0)),
    "cmu_mosi": Excerpt(cmu, CmuMosi, SPOKEN, 8, ("film7/7", 2.0), absent=2),
    "cmu_mosei": Excerpt(cmu, CmuMosei, SPOKEN, 8, ("film0/0", -1.5), absent=2),
    "iemocap": Excerpt(iemocap, Iemocap, SPOKEN[:2], 20, ("Ses05F_impro01_F001", 1)),
    "nyud_v2": Excerpt(nyud_v2, NyudV2, ("image", "image"), 110, ("test/scene3/0", 3)),
    "mcubes": Excerpt(mcubes, MCubeS, ("image",) * 4, 9, ("outscene1208_2_0000000000", [0, 19])),
    "ucf101": Excerpt(ucf101, Ucf101, ("video", "video"), 103, ("v_Action4_g01_c01", 4)),
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
    if name.startswith("cmu_"):
        pytest.importorskip("av")
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


# The files of nyud_v2 are its list: none can be known to be missing.
@pytest.mark.parametrize("name", [name for name in EXCERPTS if name != "nyud_v2"])
def test_a_missing_file_is_refused_or_absent(tmp_path: Path, name: str) -> None:
    expected = EXCERPTS[name]
    expected.make(tmp_path)
    media = sorted(
        path for path in tmp_path.rglob("*") if path.suffix in {".wav", ".jpg", ".jpeg", ".png", ".mp4"}
    )
    media = [path for path in media if "GT" not in path.parts]  # labels are no input
    first = next((path for path in media if path.suffix == ".wav"), media[0])
    if name == "ucf101":  # frames are missing where their folder is
        first = first.parent
        shutil.rmtree(first)
    else:
        first.unlink()
    with pytest.raises(
        DataError, match=rf"{name}: {expected.absent} files are not there, such as '.*{first.name}'"
    ):
        for split in SPLITS:
            opened(name, tmp_path).split(split)
    dataset = opened(name, tmp_path, missing_files="absent")
    natural = [Split(dataset, split, tuple(dataset.modalities)).natural for split in SPLITS]
    assert sum(int((~here).sum()) for presence in natural for here in presence.values()) == expected.absent


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


def test_a_line_of_cmu_mosi_that_is_wrong_is_named(tmp_path: Path) -> None:
    cmu(tmp_path)
    lines(
        tmp_path / "label.csv",
        "video_id,clip_id,text,label,annotation,mode",
        "film0,0,text,good,Positive,train",
    )
    with pytest.raises(DataError, match=r"line 2 of .*label.csv' is wrong .*'good'"):
        opened("cmu_mosi", tmp_path).split("train")


def test_iemocap_takes_excited_for_happy_and_leaves_out_what_has_no_class(home: Path) -> None:
    targets = [sample.target for sample in opened("iemocap", home).split("val")]
    assert targets == [0, 1, 1, 3]


def test_ucf101_holds_out_whole_groups(home: Path) -> None:
    found = lists_of("ucf101", home)
    groups = [{i.rpartition("_c")[0] for i in found[split]} for split in ("train", "val")]
    assert not groups[0] & groups[1] and len(found["val"]) == 2 * len(groups[1])


def test_flow_has_u_and_v_as_its_channels(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "ucf101", tmp_path / "ucf101")
    for part, level in (("u", 100), ("v", 200)):
        for path in (tmp_path / "ucf101" / "tvl1_flow" / part).rglob("*.jpg"):
            Image.new("L", (6, 5), level).save(path, format="PNG")
    flow = opened("ucf101", tmp_path).split("test")[0].inputs["flow"]
    assert (flow[0, :, 2, 2] * 255).round().tolist() == [100, 200, 0]


def test_nyud_v2_reads_colour_left_and_depth_right(home: Path) -> None:
    inputs = opened("nyud_v2", home).split("test")[0].inputs
    assert inputs["rgb"].mean(dim=(1, 2)).tolist() == [1, 0, 0]
    assert inputs["depth"].mean(dim=(1, 2)).tolist() == [0, 0, 1]


def test_mcubes_scales_every_stream_to_one_range(home: Path) -> None:
    inputs = opened("mcubes", home).split("test")[0].inputs
    assert inputs["aolp"].mean(dim=(1, 2)).tolist() == [0, 1, 0]
    assert inputs["dolp"][0, 0, 0].item() == pytest.approx(0.5, abs=0.01)
    assert inputs["nir"][0, 0, 0].item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", EXCERPTS)
def test_every_card_says_what_a_reader_must_know(name: str) -> None:
    card = EXCERPTS[name].dataset.card
    assert card is not None
    assert all((card.description, card.source, card.licence, card.citation, card.sizes, card.natural_missing))
    assert card.splits and card.modalities
