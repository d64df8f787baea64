"""manifest on folders: what Hugging Face `datasets` has saved, and images and sounds in the Hub's layout."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image

from mmx.cli import main
from mmx.data import Split
from mmx.errors import DataError
from mmx.registry import Registry
from mmx.testing import CHECKS
from mmx_datasets import saved_datasets
from mmx_datasets.manifest import Manifest

DATASETS_PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
SMALL = ("run.plots=false", "dataset.audio_seconds=0.5", "dataset.image_size=28", "dataset.cache=cache")
COLUMNS = {"photo": "image", "sound": "audio", "note": "text", "lab": "vector"}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.ones(round(8000 * seconds)), 8000, format="WAV")
    return buffer.getvalue()


def cells(start: int, stop: int) -> dict[str, list[Any]]:
    """Every third row has no photo, every fourth no sound, row 6 no note, rows 2 and 7 no numbers."""
    rows = range(start, stop)
    return {
        "photo": [{"bytes": png(20 * i), "path": None} if i % 3 else None for i in rows],
        "sound": [{"bytes": wav(0.1 + i / 20), "path": None} if i % 4 else None for i in rows],
        "note": [None if i == 6 else f"note {i}" for i in rows],
        "lab": [[i, 2.0] if i % 5 != 2 else None for i in rows],
        "kind": [i % 2 for i in rows],
        "tags": [[0, 1] if i % 2 else [1] for i in rows],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the `datasets` package itself writes them: three splits, and one in two files."""
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'mmx[test]'")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("saved")
    label = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "sound": datasets.Audio(decode=False),
            "note": datasets.Value("string"),
            "lab": datasets.Sequence(datasets.Value("float32")),
            "kind": label,
            "tags": datasets.Sequence(label),
        }
    )

    def made(start: int, stop: int) -> Any:
        # Not from_dict, which asks for a decoder of sounds.
        table = pa.table(cells(start, stop), schema=features.arrow_schema)
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))

    splits = {"train": made(0, 6), "validation": made(6, 9), "test": made(9, 12)}
    datasets.DatasetDict(splits).save_to_disk(folder / "three")
    made(0, 12).save_to_disk(folder / "one", num_shards=2)
    return folder


def opened(path: Path, **options: Any) -> Manifest:
    given = {
        "columns": COLUMNS,
        "label_column": "kind",
        "image_size": 6,
        "sample_rate": 4000,
        "audio_seconds": 0.5,
        "text_length": 5,
        "cache": str(path.parent / "cache"),
        **options,
    }
    return Manifest(str(path), **given)


def test_splits_of_a_saved_dataset_are_its_folders(saved: Path) -> None:
    dataset = opened(saved / "three")
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [6, 3, 3]


def test_empty_cells_of_a_saved_dataset_are_natural_absence(saved: Path) -> None:
    split = Split(opened(saved / "three"), "train", tuple(COLUMNS))
    assert split.natural["photo"].tolist() == [i % 3 > 0 for i in range(6)]
    assert split.natural["sound"].tolist() == [i % 4 > 0 for i in range(6)]
    assert split.natural["lab"].tolist() == [i % 5 != 2 for i in range(6)]
    assert Split(opened(saved / "three"), "val", tuple(COLUMNS)).natural["note"].tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("gigabytes", [0.0, 1.0], ids=["decoded each time", "cached"])
def test_images_and_sounds_are_read_out_of_the_arrow_file(saved: Path, gigabytes: float) -> None:
    for _ in range(2):
        inputs = opened(saved / "three", cache_gigabytes=gigabytes).split("test")[2].inputs
        torch.testing.assert_close(inputs["photo"][:, 3, 3] * 255, torch.tensor([220.0, 0, 0]))
        sound = inputs["sound"]
        assert sound.shape == (2000,) and float(sound[1000]) == pytest.approx(0.5, abs=0.05)
        assert inputs["lab"].tolist() == [11.0, 2.0]


def test_classes_have_their_names_and_are_numbered_by_them(saved: Path) -> None:
    dataset = opened(saved / "three")
    assert dataset.table.facts.labels == ["cat", "dog"]
    assert [s.target for s in dataset.split("train")] == [1, 0, 1, 0, 1, 0]
    several = opened(saved / "three", label_column="tags", task_kind="multi_label")
    assert [s.target.tolist() for s in several.split("train")][:2] == [[1, 0], [1, 1]]


def test_rows_of_several_arrow_files_are_one_table(saved: Path) -> None:
    whole = opened(saved / "one", split_column="")
    samples = {s.id: s for name in ("train", "val", "test") for s in whole.split(name)}
    assert len(samples) == 12
    assert float(samples["row 11"].inputs["photo"].max()) == pytest.approx(200 / 255)  # rows count from 1


def test_one_saved_split_needs_a_rule_for_splits(saved: Path) -> None:
    with pytest.raises(DataError, match=r'one split alone and no column .split.; .*split_column: ""'):
        opened(saved / "one")


def test_a_column_that_a_saved_dataset_lacks_is_named_with_the_nearest(saved: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'kid'\. Did you mean 'kind'"):
        opened(saved / "three", label_column="kid")


def test_images_are_no_texts(saved: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 .*column 'photo': holds a file, no text"):
        opened(saved / "three", columns={"photo": "text", "lab": "vector", "note": "text"})


def test_all_laws_of_datasets_hold_for_a_saved_folder(saved: Path, registry: Registry) -> None:
    from dataclasses import replace

    offer = next(o for o in registry.offers if o.component.name == "manifest")
    options = {"table": str(saved / "three"), "columns": COLUMNS, "label_column": "kind"}
    made = replace(
        offer, component=replace(offer.component, example={**options, "cache": str(saved / "laws")})
    )
    for law in CHECKS["dataset"]:
        law(registry, made)


def test_opening_and_counting_reads_no_image(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(saved_datasets.Stored, "read", read.append)
    split = Split(opened(saved / "three", cache=str(saved / "other")), "train", tuple(COLUMNS))
    assert len(split.targets) == 6 and read == []


def test_loader_processes_read_a_saved_folder_as_one_process_does(saved: Path) -> None:
    split = Split(opened(saved / "three"), "test", tuple(COLUMNS))
    plain, loaded = (list(split.batches(torch.arange(3), 2, split.natural, workers)) for workers in (0, 2))
    for one, other in zip(plain, loaded, strict=True):
        assert all(torch.equal(one.inputs[m], other.inputs[m]) for m in COLUMNS)


def test_a_saved_image_that_cannot_be_read_is_named_by_its_row(tmp_path: Path) -> None:
    """Written by hand in the layout, so that it is damaged, and tried without the package too."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    photos = [{"bytes": png(9), "path": None}, {"bytes": b"no image", "path": "x.png"}]
    table = pa.table({"photo": pa.array(photos, struct), "label": pa.array([0, 1], pa.int64())})
    part = tmp_path / "set" / "train"
    part.mkdir(parents=True)
    with pa.OSFile(str(part / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (part / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (part / "dataset_info.json").write_text(
        json.dumps({"features": {"label": {"names": ["a"], "_type": "X"}}})
    )
    (part.parent / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    dataset = opened(part.parent, columns={"photo": "image"}, label_column="label")
    assert dataset.split("train")[0].inputs["photo"].shape == (3, 6, 6)
    with pytest.raises(DataError, match=r"row 2 of 'set', 'photo': 'data.arrow, column photo, .*as image"):
        _ = dataset.split("train")[1].inputs["photo"]


def test_a_folder_whose_arrow_file_is_gone_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "one", tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"cannot be read .*arrow"):
        opened(tmp_path / "one", split_column="")


def test_sweep_of_the_documentation_runs_on_a_saved_folder(
    saved: Path, stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's sweep as it stands, on the folder that it names."""
    page = DATASETS_PAGE.read_text(encoding="utf-8").partition("### Folders of Hugging Face")[2]
    (stores / "saved.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    shutil.copytree(saved / "three", stores / "my-data" / "saved")
    monkeypatch.setattr(sys, "argv", ["mmx", "run", "saved.yaml", "training.epochs=1", *SMALL])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capsys.readouterr()


# ---------------------------------------------------------------------------- the Hub's folders of files


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, write_image: Callable[..., Path]) -> Path:
    """SPLIT/CLASS/x.png."""
    folder = tmp_path_factory.mktemp("files") / "classes"
    for split, count in {"train": 3, "validation": 2, "test": 2}.items():
        for shade, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(folder / split / name / f"{i}.png", (100 * shade + 5, 0, 0))
    (folder / "README.md").write_text("not a row")
    return folder


def test_folders_of_classes_say_split_and_label(classes: Path) -> None:
    dataset = opened(classes, columns={"image": "image"}, label_column="label")
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [6, 4, 4]
    assert [s.target for s in dataset.split("train")] == [0, 0, 0, 1, 1, 1]
    assert float(dataset.split("train")[5].inputs["image"].max()) == pytest.approx(105 / 255)


def test_a_file_that_comes_to_a_folder_of_classes_is_seen(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "set" / "train" / name / "0.png")
    options = {"columns": {"image": "image"}, "label_column": "label"}
    assert len(opened(tmp_path / "set", **options).split("train")) == 2
    write_image(tmp_path / "set" / "train" / "b" / "1.png")
    assert len(opened(tmp_path / "set", **options).split("train")) == 3


def test_sounds_in_folders_of_classes_are_read(tmp_path: Path, write_sound: Callable[..., Path]) -> None:
    for name in ("low", "high"):
        write_sound(tmp_path / "set" / name / "0.wav")
    dataset = opened(tmp_path / "set", columns={"audio": "audio"}, label_column="label", split_column="")
    found = [s for name in ("train", "val", "test") for s in dataset.split(name)]
    assert len(found) == 2 and found[0].inputs["audio"].shape == (2000,)


def test_a_folder_of_classes_without_splits_needs_a_rule(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "set" / "a" / "0.png")
    with pytest.raises(DataError, match=r'no column .split.\. Deal its rows out by split_column: ""'):
        opened(tmp_path / "set", columns={"image": "image"}, label_column="label")


METADATA = {
    "metadata.csv": "file_name,text,label\n{}0.png,first,x\n{}1.png,,y\n",
    "metadata.jsonl": '{{"file_name": "{}0.png", "text": "first", "label": "x"}}\n'
    '{{"file_name": "{}1.png", "text": null, "label": "y"}}\n',
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("beside", [True, False], ids=["in each split", "above the splits"])
def test_metadata_of_a_folder_is_its_table(
    tmp_path: Path, write_image: Callable[..., Path], name: str, beside: bool
) -> None:
    for split in ("train", "test"):
        for i in range(2):
            write_image(tmp_path / "set" / split / f"{i}.png")
        if beside:
            (tmp_path / "set" / split / name).write_text(METADATA[name].format("", ""))
    if not beside:
        (tmp_path / "set" / name).write_text(METADATA[name].format("train/", "test/"))
    dataset = opened(tmp_path / "set", columns={"image": "image", "text": "text"}, label_column="label")
    rows = [(name, list(s.inputs), s.target) for name in ("train", "test") for s in dataset.split(name)]
    if beside:
        both = [(["image", "text"], 0), (["image"], 1)]
        assert rows == [(split, *row) for split in ("train", "test") for row in both]
    else:
        assert rows == [("train", ["image", "text"], 0), ("test", ["image"], 1)]
    assert dataset.split("test")[0].inputs["image"].shape == (3, 6, 6)


def test_metadata_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "metadata.csv").write_text("file_name,label\n../a.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"row 1 .*the path leaves the table's folder"):
        opened(tmp_path / "set", columns={"image": "image"}, label_column="label", split_column="")
