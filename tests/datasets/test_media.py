"""Decoding: one shape a kind, whatever the file, and a reason where a file is broken."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmx.errors import DataError
from mmx_datasets.media import FILMS, Shapes, as_tensor, decode, frame_files

SMALL = Shapes(image_size=8, sample_rate=4000, audio_seconds=0.5, frames=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode_come_in_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (20, 10)).save(path)
    assert decode("image", path, SMALL).shape == (3, 8, 8)


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.repeat(np.array([0, 64, 128, 255], dtype=np.uint16) * 256, 16).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "a.png")
    assert decode("image", tmp_path / "a.png", SMALL)[0, ::2, 0].tolist() == [0, 64, 128, 255]


def halves(path: Path) -> Path:
    """An image, twice as wide as high: black in the outer quarters, white between."""
    picture = np.zeros((16, 32, 3), dtype=np.uint8)
    picture[:, 8:24] = 255
    Image.fromarray(picture).save(path)
    return path


def test_crop_cuts_what_stands_out(tmp_path: Path) -> None:
    assert decode("image", halves(tmp_path / "a.png"), SMALL).min() > 200


def test_pad_keeps_all_and_adds_black(tmp_path: Path) -> None:
    found = decode("image", halves(tmp_path / "a.png"), Shapes(8, "pad"))
    assert found[:, 0].max() == 0 and found[:, 4, 4].min() > 200 and found[:, 4, 0].max() < 60


def test_stretch_changes_proportions(tmp_path: Path) -> None:
    found = decode("image", halves(tmp_path / "a.png"), Shapes(8, "stretch"))
    assert found[:, :, 4].min() > 200 and found[:, :, 0].max() < 60


def test_an_image_that_lies_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    image = Image.open(halves(tmp_path / "a.png"))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = decode("image", tmp_path / "turned.jpg", Shapes(8, "stretch"))
    assert found[:, 4].min() > 200 and found[:, 0].max() < 60


def test_pixels_are_scaled_to_one_and_samples_to_plus_minus_one() -> None:
    assert as_tensor("image", np.array([0, 255], dtype=np.uint8)).tolist() == [0, 1]
    assert as_tensor("audio", np.array([-32768, 16384], dtype=np.int16)).tolist() == [-1, 0.5]


@pytest.mark.parametrize("rate", [4000, 8000, 44_100])
def test_a_tone_keeps_its_pitch_at_any_rate(
    tmp_path: Path, write_sound: Callable[..., Path], rate: int
) -> None:
    wave = decode("audio", write_sound(tmp_path / "a.wav", seconds=1.0, rate=rate), SMALL)
    assert wave.shape == (2000,)
    assert np.abs(np.fft.rfft(wave)).argmax() == 100  # 200 Hz in half a second
    assert 0.45 < np.abs(wave).max() / 32768 < 0.55


def test_a_short_sound_ends_in_silence(tmp_path: Path, write_sound: Callable[..., Path]) -> None:
    wave = decode("audio", write_sound(tmp_path / "a.flac", seconds=0.25, rate=4000), SMALL)
    assert np.abs(wave[:1000]).max() > 10_000 and not wave[1000:].any()


def test_channels_are_mixed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile([0.5, -0.25], (2000, 1)), 4000)
    assert decode("audio", tmp_path / "a.wav", SMALL)[100] == pytest.approx(0.125 * 32768, abs=2)


def frames(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(folder / f"frame{k}.png")
    (folder / "notes.txt").write_text("no frame")
    return folder


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    assert [path.stem for path in frame_files(frames(tmp_path / "f", 12))] == [f"frame{k}" for k in range(12)]


def test_frames_are_taken_at_equal_distances(tmp_path: Path) -> None:
    found = decode("video", frames(tmp_path / "f", 12), SMALL)
    assert found.shape == (3, 3, 8, 8)
    assert found[:, 0, 0, 0].tolist() == [20, 60, 100]


def test_a_short_film_gives_frames_twice(tmp_path: Path) -> None:
    assert decode("video", frames(tmp_path / "f", 2), SMALL)[:, 0, 0, 0].tolist() == [0, 10, 10]


BROKEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no image": ("image", lambda p: p.write_bytes(b"text")),
    "empty": ("image", lambda p: p.write_bytes(b"")),
    "not there": ("image", lambda p: None),
    "no sound": ("audio", lambda p: p.write_bytes(b"text")),
    "a sound without samples": ("audio", lambda p: soundfile.write(p, np.zeros(0), 8000, format="WAV")),
    "a folder without frames": ("video", lambda p: p.mkdir()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    kind, make = BROKEN[name]
    make(tmp_path / "a.bin")
    with pytest.raises(DataError, match=rf"a.bin' cannot be read as {kind} \("):
        decode(kind, tmp_path / "a.bin", SMALL)


def test_an_image_that_was_cut_short_is_broken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be read as image"):
        decode("image", tmp_path / "a.png", SMALL)


def test_shapes_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="must all be above 0"):
        Shapes(frames=0)


def test_a_film_without_its_decoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_av(name: str, *more: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return original(name, *more)

    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(builtins, "__import__", without_av)
    for kind in ("video", "audio"):
        with pytest.raises(DataError, match=r"pip install 'mmx\[video\]'"):
            decode(kind, tmp_path / "a.mp4", SMALL)


def film(path: Path) -> Path:
    """A film of 12 frames that grow lighter, with half a second of a tone of 200 Hz."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        pictures = file.add_stream("mpeg4", rate=24)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        sound = file.add_stream("mp3" if path.suffix == ".avi" else "aac", rate=16_000)
        for k in range(12):
            picture = np.full((32, 32, 3), 20 * k, dtype=np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
        tone = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        tone.sample_rate = 16_000
        file.mux(sound.encode(tone))
        file.mux(pictures.encode())
        file.mux(sound.encode())
    return path


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_a_film_gives_frames_and_sound(tmp_path: Path, ending: str) -> None:
    assert ending in FILMS
    path = film(tmp_path / f"a{ending}")
    lightness = decode("video", path, SMALL)[:, 0, 4, 4].astype(int)
    assert np.abs(lightness - [40, 120, 200]).max() < 12
    wave = decode("audio", path, SMALL)
    assert abs(np.abs(np.fft.rfft(wave)).argmax() - 100) <= 1


def test_a_film_that_is_none_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"text")
    for kind in ("video", "audio"):
        with pytest.raises(DataError, match=f"cannot be read as {kind}"):
            decode(kind, tmp_path / "a.mp4", SMALL)
