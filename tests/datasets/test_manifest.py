"""manifest: the user's own table, whatever its format, with empty cells and broken files."""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mmx.data import Split
from mmx.errors import DataError
from mmx.registry import Registry
from mmx.testing import CHECKS
from mmx_datasets import reading, table
from mmx_datasets.manifest import Manifest

COLUMNS = {"photo": "image", "sound": "audio", "note": "text", "lab": ["age", "weight"]}
Row = Mapping[str, Any]


def rows_of(folder: Path, write_image: Callable[..., Path], write_sound: Callable[..., Path]) -> list[Row]:
    """Twelve rows, four a split; every third has no photo, every fourth no sound, every fifth no numbers."""
    rows = []
    for i in range(12):
        write_image(folder / f"images/{i}.png", (20 * i, 0, 0))
        write_sound(folder / f"sounds/{i}.wav", seconds=0.1 * (i + 1))
        rows.append(
            {
                "key": f"k{i}",
                "photo": f"images/{i}.png" if i % 3 else None,
                "sound": f"sounds/{i}.wav" if i % 4 else None,
                "note": f"a note, on {'cats' if i % 2 else 'dogs'}",
                "age": float(i) if i % 5 else None,
                "weight": 2.5 * i if i % 5 else None,
                "label": "cat" if i % 2 else "dog",
                "split": ("train", "val", "test")[i // 4],
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    kept = [{k: v for k, v in row.items() if v is not None} for row in rows]
    path.write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    write_image: Callable[..., Path],
    write_sound: Callable[..., Path],
) -> Path:
    """A folder with the files, and with the table in each format."""
    folder = tmp_path_factory.mktemp("manifest")
    rows = rows_of(folder, write_image, write_sound)
    for ending, write in WRITERS.items():
        write(folder / f"table.{ending}", rows)
    return folder


def opened(path: Path, **options: Any) -> Manifest:
    """Open a table with small shapes, and a cache beside it."""
    small = {"columns": COLUMNS, "image_size": 6, "sample_rate": 4000, "audio_seconds": 0.5, "text_length": 5}
    return Manifest(
        str(path), **{**small, "cache": str(path.parent / "cache"), "id_column": "key", **options}
    )


def small_table(folder: Path, rows: Sequence[Row], **options: Any) -> Manifest:
    """A table of numbers alone."""
    given = {"columns": {"x": ["x"]}, "id_column": "", **options}
    return opened(write_csv(folder / "small.csv", rows), **given)


def numbered(count: int, **more: Any) -> list[Row]:
    return [{"x": i, "label": i % 2, "split": "train", **more} for i in range(count)]


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_says_the_same(home: Path, ending: str) -> None:
    one, other = opened(home / "table.csv"), opened(home / f"table.{ending}")
    for name in ("train", "val", "test"):
        for a, b in zip(one.split(name), other.split(name), strict=True):
            assert (a.id, a.target, list(a.inputs)) == (b.id, b.target, list(b.inputs))
            assert all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)


def test_an_empty_cell_is_natural_absence(home: Path) -> None:
    split = Split(opened(home / "table.csv"), "train", tuple(COLUMNS))
    assert split.natural["photo"].tolist() == [False, True, True, False]
    assert split.natural["sound"].tolist() == [False, True, True, True]
    assert split.natural["lab"].tolist() == [False, True, True, True]


def test_only_an_empty_cell_is_absence(tmp_path: Path) -> None:
    rows = [
        {"note": text, "x": i, "label": i % 2, "split": "train"} for i, text in enumerate(["NA", "null", ""])
    ]
    dataset = opened(write_csv(tmp_path / "t.csv", rows), columns={"note": "text", "x": ["x"]}, id_column="")
    assert ["note" in sample.inputs for sample in dataset.split("train")] == [True, True, False]


def test_each_kind_has_one_shape(home: Path) -> None:
    samples = list(opened(home / "table.csv").split("test"))
    shapes = {(m, tuple(x.shape), x.dtype) for s in samples for m, x in s.inputs.items()}
    assert shapes == {
        ("photo", (3, 6, 6), torch.float32),
        ("sound", (2000,), torch.float32),
        ("note", (5,), torch.int64),
        ("lab", (2,), torch.float32),
    }


def test_what_nobody_asks_for_is_never_decoded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(reading, "decode", lambda kind, *_: decoded.append(kind))
    split = Split(opened(home / "table.csv"), "train", ("note", "lab"))
    assert len(split.targets) == 4
    split.batch(torch.arange(4), split.natural)
    assert decoded == []


def test_loader_processes_read_what_one_process_reads(home: Path) -> None:
    split = Split(opened(home / "table.csv"), "val", tuple(COLUMNS))
    plain, loaded = (list(split.batches(torch.arange(4), 2, split.natural, workers)) for workers in (0, 2))
    for one, other in zip(plain, loaded, strict=True):
        assert one.ids == other.ids
        assert all(torch.equal(one.inputs[m], other.inputs[m]) for m in COLUMNS)


def test_all_laws_of_datasets_hold(home: Path, registry: Registry) -> None:
    offer = next(o for o in registry.offers if o.component.name == "manifest")
    options = {
        "table": str(home / "table.csv"),
        "columns": COLUMNS,
        "cache": str(home / "cache"),
        "image_size": 6,
    }
    made = replace(offer, component=replace(offer.component, example=options))
    for law in CHECKS["dataset"]:
        law(registry, made)


def test_the_vocabulary_knows_training_words_alone(home: Path) -> None:
    dataset = opened(home / "table.csv", text_length=6)
    ids = dataset.read.text("a zebra, on")
    # By frequency, then alphabet: , a note on (four each), cats dogs (two each).
    assert ids.tolist() == [3, 1, 2, 5, 0, 0]


def test_a_tokenizer_file_is_used_as_it_is(home: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": 7, "[UNK]": 1, "a": 2, "note": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    dataset = opened(home / "table.csv", tokenizer=str(tmp_path / "tokenizer.json"), text_length=4)
    assert dataset.read.text("a note").tolist() == [2, 3, 7, 7]
    assert dataset.read.text("a a a a note").tolist() == [2, 2, 2, 2]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    dataset = small_table(tmp_path, [{"x": 1, "label": n, "split": "train"} for n in (10, 9, 2)])
    assert [s.target for s in dataset.split("train")] == [2, 1, 0]


def test_labels_may_be_several(tmp_path: Path) -> None:
    rows = [{"x": 1, "label": text, "split": "train"} for text in ("a|b", "b", "c | a")]
    dataset = small_table(tmp_path, rows, task_kind="multi_label")
    assert np.stack([s.target for s in dataset.split("train")]).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_labels_may_be_numbers_to_predict(tmp_path: Path) -> None:
    rows = [{"x": 1, "label": v, "split": "train"} for v in (-1.5, 3.0)]
    dataset = small_table(tmp_path, rows, task_kind="regression")
    assert [s.target for s in dataset.split("train")] == [-1.5, 3.0]


def test_without_a_split_column_rows_are_dealt_out_by_their_ids(tmp_path: Path) -> None:
    rows = [{"x": i, "label": i % 2, "key": f"k{i}"} for i in range(400)]
    options = {"split_column": "", "id_column": "key"}
    one = small_table(tmp_path, rows, **options)
    (tmp_path / "other").mkdir()
    other = small_table(tmp_path / "other", rows[::-1], **options)
    for name, least, most in (("train", 290, 350), ("val", 20, 60), ("test", 20, 60)):
        ids = {s.id for s in one.split(name)}
        assert least < len(ids) < most
        assert ids == {s.id for s in other.split(name)}


def test_an_unreadable_file_is_named_by_its_row(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [{"photo": "broken.png", "label": i, "split": "train"} for i in range(2)]
    dataset = opened(write_csv(tmp_path / "t.csv", rows), columns={"photo": "image"}, id_column="")
    with pytest.raises(DataError, match=r"row 2 of 't.csv', 'photo': .*broken.png' cannot be read as image"):
        _ = dataset.split("train")[1].inputs["photo"]


def test_an_unreadable_file_may_be_absence(
    home: Path, tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "good.png")
    rows = [{"photo": name, "note": "n", "label": i, "split": "train"}
            for i, name in enumerate(("good.png", "not there.png"))]  # fmt: skip
    options = {"columns": {"photo": "image", "note": "text"}, "id_column": "", "on_error": "absent"}
    with pytest.warns(UserWarning, match=r"1 files of 't.csv' cannot be read .* stands in row 2"):
        split = Split(opened(write_csv(tmp_path / "t.csv", rows), **options), "train", ("photo", "note"))
    assert split.natural["photo"].tolist() == [True, False]
    assert "photo" not in split.samples[1].inputs


def test_a_row_whose_only_file_is_broken_is_never_taken_for_absent(tmp_path: Path) -> None:
    rows = [{"photo": "nothing.png", "label": i, "split": "train"} for i in range(2)]
    options = {"columns": {"photo": "image"}, "id_column": "", "on_error": "absent"}
    dataset = opened(write_csv(tmp_path / "t.csv", rows), **options)
    with pytest.raises(DataError, match="no file of sample 'row 1'"):
        dataset.split("train")


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", ".."])
def test_a_relative_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    rows = [
        {"photo": "a..b.png", "label": 0, "split": "train"},
        {"photo": path, "label": 1, "split": "train"},
    ]
    with pytest.raises(DataError, match=r"row 2 .*column 'photo': the path leaves the table's folder"):
        opened(write_csv(tmp_path / "t.csv", rows), columns={"photo": "image"}, id_column="")


def test_an_absolute_path_of_the_table_is_read(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    path = write_image(tmp_path / "elsewhere" / "photo.png")
    (tmp_path / "home").mkdir()
    rows = [{"photo": str(path), "label": i, "split": "train"} for i in range(2)]
    dataset = opened(write_csv(tmp_path / "home" / "t.csv", rows), columns={"photo": "image"}, id_column="")
    assert dataset.split("train")[0].inputs["photo"].shape == (3, 6, 6)


WRONG = {
    "split": ({"split": "trian"}, "row 3 .*column 'split': 'trian' is no split. Did you mean 'train'?"),
    "label": ({"label": ""}, "row 3 .*column 'label': is empty"),
    "number": ({"x": "many"}, "row 3 .*column 'x': could not convert string to float: 'many'"),
    "infinite": ({"x": "inf"}, "row 3 .*column 'x': a number is empty or not finite"),
    "nothing": ({"x": ""}, "row 3 of 'small.csv' has none of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_cell_is_named_by_row_and_column(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    rows = numbered(4)
    with pytest.raises(DataError, match=message):
        small_table(tmp_path, [*rows[:2], {**rows[2], **change}, rows[3]])


def test_vectors_of_two_widths_are_refused(tmp_path: Path) -> None:
    rows = [{"x": "1 2", "label": 0, "split": "train"}, {"x": "1 2 3", "label": 1, "split": "train"}]
    with pytest.raises(DataError, match=r"row 2 .*it has 3 numbers, the rows before 2"):
        small_table(tmp_path, rows, columns={"x": "vector"})


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'labels'. Did you mean 'label'?"):
        small_table(tmp_path, numbered(3), label_column="labels")


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns.x: 'imgae' is neither .* Did you mean 'image'?"):
        small_table(tmp_path, numbered(3), columns={"x": "imgae"})


def test_a_json_key_that_comes_late_is_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmx_datasets.table_formats.JSON_ROWS_AT_ONCE", 2)
    rows = [{**row, "late": None if i < 5 else "now"} for i, row in enumerate(numbered(6))]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    dataset = opened(path, columns={"x": ["x"], "late": "text"}, id_column="")
    assert [list(s.inputs) for s in dataset.split("train")] == [["x"]] * 5 + [["x", "late"]]


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(DataError, match=r"line 2 of 't.jsonl' is no JSON object"):
        opened(path, columns={"x": ["x"]}, id_column="")


def test_a_table_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(table, "batches", lambda path, names: reads.append(path) or original(path, names))
    from mmx_datasets.table_sources import batches as original

    small_table(tmp_path, numbered(4))
    opened(tmp_path / "small.csv", columns={"x": ["x"]}, id_column="")
    assert len(reads) == 1
    assert len(small_table(tmp_path, numbered(6)).split("train")) == 6
    assert len(reads) == 2


def test_an_index_that_nobody_has_opened_for_long_is_forgotten(tmp_path: Path) -> None:
    small_table(tmp_path, numbered(4))
    (old,) = (tmp_path / "cache" / "tables").iterdir()
    os.utime(old, (1, 1))
    small_table(tmp_path, numbered(6))
    assert not old.exists()
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1


def test_opening_a_table_marks_its_index_as_used(tmp_path: Path) -> None:
    small_table(tmp_path, numbered(4))
    (index,) = (tmp_path / "cache" / "tables").iterdir()
    os.utime(index, (1, 1))
    opened(tmp_path / "small.csv", columns={"x": ["x"]}, id_column="")
    assert index.stat().st_mtime > 1


def test_an_index_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        small_table(tmp_path, [*numbered(2), {"x": "", "label": 0, "split": "train"}])
    assert list((tmp_path / "cache" / "tables").iterdir()) == []


def test_rows_in_several_pieces_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmx_datasets.table_formats.ROWS_AT_ONCE", 3)
    rows = [{**row, "x": None if i == 7 else float(i), "y": 1.0} for i, row in enumerate(numbered(10))]
    path = write_parquet(tmp_path / "t.parquet", rows)
    samples = opened(path, columns={"x": ["x"], "y": ["y"]}, id_column="").split("train")
    assert [s.id for s in samples] == [f"row {i}" for i in range(1, 11)]
    assert [i for i, present in samples.contents if "x" not in present] == ["row 8"]
    assert samples.contents[7] == ("row 8", ("y",))


def test_what_a_split_is_made_of_has_a_stamp_that_changes_with_a_file(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    rows = [{"photo": f"{i}.png", "note": "n", "label": i, "split": "train"} for i in range(2)]
    paths = [write_image(tmp_path / row["photo"]) for row in rows]
    table = write_csv(tmp_path / "t.csv", rows)

    def stamps(**options: Any) -> list[str | None]:
        given = {"columns": {"photo": "image", "note": "text"}, "id_column": "", **options}
        split = Split(opened(table, **given), "train", ("photo", "note"))
        return [split.stamp("photo"), split.stamp("note")]

    before = stamps()
    assert None not in before and stamps() == before
    assert stamps(image_size=8)[0] != before[0]
    os.utime(paths[1], (0, 0))
    assert stamps()[0] != before[0] and stamps()[1] == before[1]
