"""Small files of every kind, made where a test asks for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_image() -> Write:
    """Write an image of one colour."""

    def write(
        path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8)
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def write_sound() -> Write:
    """Write a tone of 200 Hz."""

    def write(path: Path, seconds: float = 0.5, rate: int = 8000, channels: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate)
        soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
        return path

    return write
