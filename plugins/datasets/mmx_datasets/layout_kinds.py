"""Bases of the readers by what a dataset is made of: each has the options that make sense for it."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from mmx_datasets.layout import Layout, MissingFiles
from mmx_datasets.media import Fit, Shapes


class ImageText(Layout):
    """Images (3, image_size, image_size) in [0, 1] and texts (text_length,) of token ids."""

    modalities: Mapping[str, str] = {"image": "image", "text": "text"}

    def __init__(
        self,
        root: str = "data",
        missing_files: MissingFiles = "raise",
        val_share: float = 0.1,
        image_size: int = 224,
        image_fit: Fit = "crop",
        text_length: int = 64,
        tokenizer: str = "",
        vocabulary_size: int = 30_000,
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        shapes = Shapes(image_size, image_fit)
        text = (text_length, tokenizer, vocabulary_size)
        super().__init__(root, shapes, missing_files, val_share, *text, cache, cache_gigabytes)


class Spoken(Layout):
    """Texts (text_length,) of token ids, sounds (audio_seconds * sample_rate,) in [-1, 1], and films, where
    the dataset has them, (frames, 3, image_size, image_size) in [0, 1].
    """

    def __init__(
        self,
        root: str = "data",
        missing_files: MissingFiles = "raise",
        image_size: int = 224,
        image_fit: Fit = "crop",
        frames: int = 8,
        sample_rate: int = 16_000,
        audio_seconds: float = 6.0,
        text_length: int = 64,
        tokenizer: str = "",
        vocabulary_size: int = 30_000,
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        shapes = Shapes(image_size, image_fit, sample_rate, audio_seconds, frames)
        text = (text_length, tokenizer, vocabulary_size)
        super().__init__(root, shapes, missing_files, 0.1, *text, cache, cache_gigabytes)


class Visual(Layout):
    """Several streams of frames, each (frames, 3, image_size, image_size) in [0, 1].

    `visual_as`: "video" gives `frames` frames, "image" the middle one alone, (3, image_size, image_size).
    """

    streams: ClassVar[tuple[str, ...]]
    """Names of the modalities."""

    def __init__(
        self,
        root: str = "data",
        missing_files: MissingFiles = "raise",
        val_share: float = 0.1,
        visual_as: Literal["video", "image"] = "video",
        image_size: int = 224,
        image_fit: Fit = "crop",
        frames: int = 3,
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        self.modalities = dict.fromkeys(self.streams, visual_as)
        kept = {"cache": cache, "cache_gigabytes": cache_gigabytes}
        shapes = Shapes(image_size, image_fit, frames=frames)
        super().__init__(root, shapes, missing_files, val_share, **kept)  # type: ignore[arg-type]


class Stills(Layout):
    """Several images of one thing, each (3, image_size, image_size) in [0, 1]."""

    def __init__(
        self,
        root: str = "data",
        missing_files: MissingFiles = "raise",
        val_share: float = 0.1,
        image_size: int = 224,
        image_fit: Fit = "crop",
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        kept = {"cache": cache, "cache_gigabytes": cache_gigabytes}
        super().__init__(root, Shapes(image_size, image_fit), missing_files, val_share, **kept)  # type: ignore[arg-type]


class AudioVisual(Layout):
    """Sounds (audio_seconds * sample_rate,) in [-1, 1], and frames in [0, 1].

    `visual_as`: "video" gives (frames, 3, image_size, image_size), "image" the middle frame alone.
    """

    def __init__(
        self,
        root: str = "data",
        missing_files: MissingFiles = "raise",
        val_share: float = 0.1,
        visual_as: Literal["video", "image"] = "video",
        image_size: int = 224,
        image_fit: Fit = "crop",
        frames: int = 3,
        sample_rate: int = 16_000,
        audio_seconds: float = 4.0,
        cache: str = "",
        cache_gigabytes: float = 10.0,
    ) -> None:
        self.modalities = {"audio": "audio", "visual": visual_as}
        shapes = Shapes(image_size, image_fit, sample_rate, audio_seconds, frames)
        kept = {"cache": cache, "cache_gigabytes": cache_gigabytes}
        super().__init__(root, shapes, missing_files, val_share, **kept)  # type: ignore[arg-type]
