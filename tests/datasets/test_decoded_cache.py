"""The cache of decoded files: each is decoded once, whole or not at all, within bounds."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmx.cache import IN_USE_SECONDS, Cache, FullError, default_folder, key_of
from mmx.errors import DataError
from mmx_datasets import reading
from mmx_datasets.media import Shapes, decode
from mmx_datasets.reading import Reader
from mmx_datasets.words import Vocabulary

ENTRY = 1128
"""Bytes of an entry of 1,000 bytes, with the head that numpy writes."""


def block(value: int = 1) -> np.ndarray:
    return np.full(1000, value, dtype=np.uint8)


def keys(count: int) -> list[str]:
    return [f"{k:02x}{'0' * 62}" for k in range(count)]


def reader(folder: Path | None, size: int = 4) -> Reader:
    cache = None if folder is None else Cache(folder, 10**6)
    kinds = {"photo": "image", "sound": "audio"}
    return Reader(kinds, Shapes(image_size=size, audio_seconds=0.1), Vocabulary(list, 9, 9), cache)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is decoded, in order."""
    paths: list[Path] = []

    def watched(kind: str, path: Path, shapes: Shapes) -> np.ndarray:
        paths.append(path)
        return decode(kind, path, shapes)

    monkeypatch.setattr(reading, "decode", watched)
    return paths


def test_a_file_is_decoded_once(
    tmp_path: Path, write_image: Callable[..., Path], decoded: list[Path]
) -> None:
    path = write_image(tmp_path / "a.png")
    first = reader(tmp_path / "cache")("photo", path)
    again = reader(tmp_path / "cache")("photo", path)
    assert decoded == [path]
    assert torch.equal(first, again)


def test_a_changed_file_is_decoded_anew(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    read = reader(tmp_path / "cache")
    red = read("photo", write_image(tmp_path / "a.png", (255, 0, 0)))
    os.utime(write_image(tmp_path / "a.png", (0, 255, 0)), ns=(1, 1))
    assert not torch.equal(red, read("photo", tmp_path / "a.png"))


def test_other_settings_have_entries_of_their_own(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    path = write_image(tmp_path / "a.png")
    assert reader(tmp_path / "cache", size=4)("photo", path).shape == (3, 4, 4)
    assert reader(tmp_path / "cache", size=6)("photo", path).shape == (3, 6, 6)


def test_a_cache_changes_no_number(
    tmp_path: Path, write_image: Callable[..., Path], write_sound: Callable[..., Path]
) -> None:
    given = {"photo": write_image(tmp_path / "a.png", (9, 99, 200)), "sound": write_sound(tmp_path / "a.wav")}
    for m, path in given.items():
        plain = reader(None)(m, path)
        assert torch.equal(plain, reader(tmp_path / "cache")(m, path))
        assert torch.equal(plain, reader(tmp_path / "cache")(m, path))


def test_a_file_that_is_not_there_is_an_error_with_a_cache_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.png' cannot be read as image"):
        reader(tmp_path / "cache")("photo", tmp_path / "nothing.png")


def test_what_fails_to_decode_leaves_no_entry(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        reader(tmp_path / "cache")("photo", tmp_path / "broken.png")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_an_entry_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path, 10**6), keys(1)[0]
    cache.get(key, block)
    (path,) = tmp_path.rglob("*.npy")
    for content in (path.read_bytes()[:500], b""):
        path.write_bytes(content)
        assert np.array_equal(cache.get(key, block), block())
        assert path.stat().st_size == ENTRY


def test_a_planted_pickle_is_never_loaded(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path, 10**6), keys(1)[0]
    cache.get(key, block)
    (path,) = tmp_path.rglob("*.npy")
    np.save(path, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    assert np.array_equal(cache.get(key, block), block())


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert np.array_equal(Cache(tmp_path / "file", 10**6).get(keys(1)[0], block), block())


def test_a_full_cache_takes_nothing_new_while_its_entries_are_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * ENTRY)
    for key in keys(9):
        cache.get(key, block)
    assert cache.size() <= 3 * ENTRY
    kept = {path.stem for path in tmp_path.rglob("*.npy")}
    assert kept == set(keys(len(kept))) and len(kept) >= 2


def test_a_full_cache_forgets_what_nobody_reads_the_oldest_first(tmp_path: Path) -> None:
    for key in keys(3):
        Cache(tmp_path, 3 * ENTRY).get(key, block)
    for age, key in enumerate(keys(2), start=1):
        path = next(tmp_path.rglob(f"{key}.npy"))
        os.utime(path, (time.time() - age * IN_USE_SECONDS - 9,) * 2)
    new = "ff" + "0" * 62
    Cache(tmp_path, 3 * ENTRY).get(new, block)
    assert {path.stem for path in tmp_path.rglob("*.npy")} == {keys(3)[0], keys(3)[2], new}


def test_reading_an_old_entry_marks_it_as_used(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path, 10**6), keys(1)[0]
    cache.get(key, block)
    (path,) = tmp_path.rglob("*.npy")
    os.utime(path, (1, 1))
    cache.get(key, block)
    assert path.stat().st_mtime > time.time() - 60


def _fill(folder: Path, order: int, failures: "multiprocessing.Queue[int]") -> None:
    generator = np.random.default_rng(order)
    cache = Cache(folder, 10**7)
    for k in generator.permutation(40).tolist():
        found = cache.get(keys(40)[k], lambda k=k: block(k))
        if not np.array_equal(found, block(k)):
            failures.put(k)


def test_several_processes_fill_one_cache_without_a_half_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [context.Process(target=_fill, args=(tmp_path, order, failures)) for order in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert failures.empty()
    assert len(list(tmp_path.rglob("*.npy"))) == 40
    assert not list(tmp_path.rglob("*.part"))


def test_a_key_hangs_on_path_size_time_and_settings(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    for path in (one, other):
        path.write_text("text")
        os.utime(path, ns=(1, 1))
    found = [key_of([one], {"x": 1}), key_of([other], {"x": 1}), key_of([one], {"x": 2})]
    os.utime(one, ns=(2, 2))
    found.append(key_of([one], {"x": 1}))
    assert len(set(found)) == 4


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mmx"


def rows(kept: list[int]) -> Iterator[np.ndarray]:
    """Two blocks of a table; notes that somebody asked."""
    kept.append(1)
    yield np.zeros((2, 3), np.float32)
    yield np.ones((1, 3), np.float32)


def test_a_table_is_written_once_block_by_block(tmp_path: Path) -> None:
    asked: list[int] = []
    for _ in range(2):
        found = Cache(tmp_path, 10**6).fill("ab", (3, 3), np.float32, lambda: rows(asked))
        assert found.sum() == 3 and isinstance(found, np.memmap)
    assert asked == [1]


def test_a_table_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    with pytest.raises(ValueError, match="3 rows were written of 4"):
        cache.fill("ab", (4, 3), np.float32, lambda: rows([]))
    assert cache.size() == 0 and not list(tmp_path.rglob("*.part"))


def test_a_table_pushes_others_out_and_is_refused_where_that_is_not_enough(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 180, idle=0.0)
    first = cache.fill("ab", (3, 3), np.float32, lambda: rows([]))
    cache.fill("cd", (3, 3), np.float32, lambda: rows([]))
    assert [path.stem for path in tmp_path.rglob("*.npy")] == ["cd"]
    assert first.sum() == 3  # who has it open goes on reading
    with pytest.raises(FullError, match="GB are needed"):
        cache.fill("ef", (100, 3), np.float32, lambda: rows([]))


def _fill_slowly(folder: str, log: str) -> None:
    def blocks() -> Iterator[np.ndarray]:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(0.3)
        yield from rows([])

    assert Cache(Path(folder), 10**6).fill("ab", (3, 3), np.float32, blocks).sum() == 3


def test_of_processes_that_ask_at_once_one_makes_a_table(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    started = [context.Process(target=_fill_slowly, args=(str(tmp_path), str(log))) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0, 0] and log.read_text() == "x"
