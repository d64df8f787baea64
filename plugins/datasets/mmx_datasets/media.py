"""Files of images, sounds and films to arrays of one shape: what is decoded, resampled, cut and padded.

Arrays are whole numbers, as files hold them and as the cache keeps them: images (3, size, size) and films
(frames, 3, size, size) in uint8, sounds (samples,) in int16. `as_tensor` scales them: images and films to
[0, 1], sounds to [-1, 1].
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmx.errors import DataError

Array = npt.NDArray[Any]
Source = Path | bytes
"""A file, or what one would hold."""
Fit = Literal["crop", "pad", "stretch"]

FILMS = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".flv", ".m4v", ".mpg", ".mpeg", ".3gp"})
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
MEDIA_KINDS = ("image", "audio", "video")


@dataclass(frozen=True)
class Shapes:
    """The one shape that files of each kind are brought to.

    `image_fit`: "crop" fills the square and cuts what stands out, "pad" keeps all and adds black, "stretch"
    changes the proportions. Sounds are mixed to one channel, resampled, and cut or padded with zeros at the
    end. `frames` are taken from a film at equal distances.
    """

    image_size: int = 224
    image_fit: Fit = "crop"
    sample_rate: int = 16_000
    audio_seconds: float = 4.0
    frames: int = 8
    half: Literal["", "left", "right"] = ""
    """Which half of an image is read; empty: all of it."""

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.sample_rate, self.audio_seconds * self.sample_rate, self.frames)
        if min(sizes) < 1:
            raise DataError(
                f"image_size {self.image_size}, sample_rate {self.sample_rate}, audio_seconds "
                f"{self.audio_seconds} and frames {self.frames} must all be above 0"
            )

    @property
    def samples(self) -> int:
        """Length of a sound."""
        return round(self.audio_seconds * self.sample_rate)

    def settings(self, kind: str) -> dict[str, Any]:
        """Give what decides the array that a file of this kind becomes."""
        if kind == "audio":
            return {"rate": self.sample_rate, "samples": self.samples}
        frames = {"frames": self.frames} if kind == "video" else {}
        half = {"half": self.half} if self.half else {}
        return {"size": self.image_size, "fit": self.image_fit, **frames, **half}


def decode(kind: str, source: Source, shapes: Shapes, name: str = "") -> Array:
    """Read a file; whatever is wrong with it comes as DataError that says why. Bytes are told by `name`."""
    try:
        return READERS[kind](source, shapes)
    except DataError:
        raise
    # Decoders raise what they like for a damaged file: OSError, SyntaxError, RuntimeError, struct.error, ...
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        told = f"'{name or source!s}' cannot be read as {kind} ({type(error).__name__}: {reason})"
        raise DataError(told) from error


def _opened(source: Source) -> Any:
    """Give what decoders take: a path, or a file in memory."""
    return BytesIO(source) if isinstance(source, bytes) else str(source)


def as_tensor(kind: str, array: Array) -> Tensor:
    """Scale a decoded array to what encoders read."""
    values = torch.from_numpy(np.array(array, dtype=np.float32))  # a copy: the cache's pages are read-only
    return values / (32768.0 if kind == "audio" else 255.0)


def _read_image(source: Source, shapes: Shapes) -> Array:
    """Decode an image, turned upright where its EXIF data says so; of a film, or frames, the middle one."""
    from PIL import Image

    if isinstance(source, Path):
        if source.is_dir() or source.suffix.lower() in FILMS:
            return _read_video(source, replace(shapes, frames=1))[0]
        if source.suffix.lower() == ".npy":
            return _square(_numbers(source), shapes)
    with Image.open(_opened(source)) as image:
        return _square(image, shapes)


def _square(image: Any, shapes: Shapes) -> Array:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(_eight_bits(image)).convert("RGB")
    if shapes.half:
        width, height = upright.size
        start = 0 if shapes.half == "left" else width // 2
        upright = upright.crop((start, 0, start + width // 2, height))
    size, method = (shapes.image_size, shapes.image_size), Image.Resampling.BICUBIC
    if shapes.image_fit == "crop":
        upright = ImageOps.fit(upright, size, method)
    elif shapes.image_fit == "pad":
        upright = ImageOps.pad(upright, size, method)
    else:
        upright = upright.resize(size, method)
    return np.asarray(upright, dtype=np.uint8).transpose(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """Take the upper eight of sixteen bits: Pillow alone would make all that is above 255 white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def _numbers(path: Path) -> Any:
    """Read an array of numbers between -1 and 1 (.npy) as a grey image."""
    from PIL import Image

    values = np.load(path, allow_pickle=False)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"an array of shape {values.shape} is no finite picture of two axes")
    return Image.fromarray(np.round((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8))


def _read_audio(source: Source, shapes: Shapes) -> Array:
    """Decode the beginning of a sound file, or of the sound of a film."""
    if isinstance(source, Path) and source.suffix.lower() in FILMS:
        rate, wave = _sound_of_film(source, shapes.audio_seconds)
    else:
        rate, wave = _sound(source, shapes.audio_seconds)
    if len(wave) == 0:
        raise ValueError("it holds no sound")
    return _one_length(rate, wave, shapes)


def _sound(source: Source, seconds: float) -> tuple[int, Array]:
    import soundfile

    with soundfile.SoundFile(_opened(source)) as file:
        # A little more than is kept, so that the resampler's filter sees past the end.
        wave = file.read(int((seconds + 0.1) * file.samplerate) + 1, dtype="float32", always_2d=True)
        return int(file.samplerate), wave.mean(axis=1)


def _one_length(rate: int, wave: Array, shapes: Shapes) -> Array:
    from torchaudio.functional import resample

    sound = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    if rate != shapes.sample_rate:
        sound = resample(sound, rate, shapes.sample_rate)
    whole = np.zeros(shapes.samples, dtype=np.int16)
    cut = sound[: shapes.samples].mul(32768.0).round().clamp(-32768, 32767).numpy().astype(np.int16)
    whole[: len(cut)] = cut
    return whole


def _read_video(source: Source, shapes: Shapes) -> Array:
    """Decode some frames of a film, or of a folder that holds one image a frame, in the order of names."""
    if isinstance(source, Path) and source.is_dir():
        from PIL import Image

        files = frame_files(source)
        images = []
        for place in _spread(len(files), shapes.frames):
            with Image.open(files[place]) as image:
                images.append(_square(image, shapes))
        return np.stack(images)
    frames = _frames_of_film(source, shapes.frames)
    return np.stack([_square(frame, shapes) for frame in frames])


def frame_files(folder: Path) -> list[Path]:
    """List the images of a folder, frame 2 before frame 10; ValueError where there is none."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
    if not found:
        raise ValueError("the folder holds no image")
    return sorted(
        found, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]
    )


def _spread(count: int, wanted: int) -> list[int]:
    """Give the middle of each of `wanted` equal parts; a short film gives some frames twice."""
    return [min(count - 1, int((k + 0.5) * count / wanted)) for k in range(wanted)]


def _frames_of_film(source: Source, wanted: int) -> list[Any]:
    """Decode a film twice, since many files do not tell how many frames they have; keep some."""
    with _av().open(_opened(source)) as film:
        count = sum(1 for _ in film.decode(video=0))
    if count == 0:
        raise ValueError("it holds no frames")
    chosen = _spread(count, wanted)
    with _av().open(_opened(source)) as film:
        last = max(chosen)
        kept = {
            number: frame.to_image()
            for number, frame in _until(film.decode(video=0), last)
            if number in set(chosen)
        }
    return [kept[number] for number in chosen]


def _until(frames: Iterator[Any], last: int) -> Iterator[tuple[int, Any]]:
    for number, frame in enumerate(frames):
        yield number, frame
        if number == last:
            return


def _sound_of_film(path: Path, seconds: float) -> tuple[int, Array]:
    av = _av()
    with av.open(str(path)) as film:
        if not film.streams.audio:
            raise ValueError("the film has no sound")
        rate = int(film.streams.audio[0].rate)
        to_float = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts: list[Array] = []
        for frame in film.decode(audio=0):
            parts += [piece.to_ndarray().reshape(-1) for piece in to_float.resample(frame)]
            if sum(map(len, parts)) > (seconds + 0.1) * rate:
                break
    return rate, np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _av() -> ModuleType:
    """Import PyAV, which only films need."""
    try:
        import av
    except ImportError as error:
        raise DataError(
            "films are decoded by PyAV, which is not installed; run `pip install 'mmx[video]'`, or give "
            "folders of frames"
        ) from error
    return av


READERS: Mapping[str, Callable[[Source, Shapes], Array]] = {
    "image": _read_image,
    "audio": _read_audio,
    "video": _read_video,
}


def files_of(path: Path) -> Sequence[Path]:
    """List the files whose contents decide what `decode` gives."""
    return frame_files(path) if path.is_dir() else [path]
