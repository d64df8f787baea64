"""`mmx data verify`: it counts, names what is broken, and its exit code says whether something is."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mmx.cli import main


class Ended(NamedTuple):
    """How the command ended."""

    code: int
    out: str
    err: str


Verify = Callable[..., Ended]
TWO = "columns={photo: image, note: text}"


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verify:
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mmx", "data", "verify", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def table(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A table with two rows a split; the second photo of each is broken, the first note of each empty."""
    rows = ["photo,note,label,split"]
    for split in ("train", "val", "test"):
        write_image(tmp_path / f"{split}.png")
        (tmp_path / f"{split}-broken.png").write_bytes(b"no image")
        rows += [f"{split}.png,,a,{split}", f"{split}-broken.png,words,b,{split}"]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "table.csv"


def test_a_whole_dataset_is_counted(verify: Verify) -> None:
    ended = verify("toy_world", "train_size=5", "val_size=6", "test_size=7", "--json")
    assert ended.code == 0
    found: dict[str, Any] = json.loads(ended.out)
    assert {s: f["samples"] for s, f in found["splits"].items()} == {"train": 5, "val": 6, "test": 7}
    assert all(not f["unreadable"] and not f["told"] for f in found["splits"].values())


def test_what_cannot_be_read_is_named_by_its_row(verify: Verify, table: Path) -> None:
    ended = verify("manifest", f"table={table}", TWO, "image_size=4")
    assert ended.code == 1
    assert "train: 2 samples; absent: note 1; 1 unreadable inputs, 0 other problems" in ended.out
    assert "row 6 of 'table.csv', 'photo': " in ended.out
    assert "checksums: none are known" in ended.out


def test_files_that_are_not_there_are_counted(
    verify: Verify, tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        rows = [{"id": 2 * number + k, "img": "", "label": k, "text": "t"} for k in range(2)]
        lines = [json.dumps({**row, "img": f"img/{row['id']}.png"}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        write_image(tmp_path / "img" / f"{2 * number}.png")
    ended = verify("hateful_memes", "--root", str(tmp_path), "image_size=4", "--json")
    assert ended.code == 0
    assert [f["absent"]["image"] for f in json.loads(ended.out)["splits"].values()] == [1, 1, 1]


def test_checksums_of_the_card_are_compared(tmp_path: Path) -> None:
    from mmx.cli.data import _checksums
    from mmx.contracts import DataCard

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.gz").write_bytes(gzip.compress(b"a", mtime=0))
    (tmp_path / "b.gz").write_bytes(b"")
    empty = "d41d8cd98f00b204e9800998ecf8427e"
    keys = ("md5 a.gz", "md5 b.gz", "md5 c.gz", "sha256 of all samples")
    card = DataCard("d", "s", "l", checksums=dict.fromkeys(keys, empty))
    assert dict(_checksums(card, tmp_path)) == {"a.gz": "wrong", "b.gz": "right", "c.gz": "not there"}


def test_data_that_is_not_there_is_bad_input(verify: Verify) -> None:
    ended = verify("crema_d")
    assert ended.code == 2
    assert "no AudioWAV" in ended.err and "under root 'data/crema_d'" in ended.err


def test_an_unknown_option_is_told_with_the_nearest(verify: Verify) -> None:
    ended = verify("toy_world", "trian_size=5")
    assert ended.code == 2
    assert "Did you mean 'train_size'?" in ended.err


def test_a_root_that_a_dataset_does_not_have_is_refused(verify: Verify) -> None:
    ended = verify("toy_world", "--root", "data")
    assert ended.code == 2
    assert "toy_world has no option 'root'" in ended.err
