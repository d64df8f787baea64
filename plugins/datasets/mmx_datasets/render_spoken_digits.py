"""Render the spoken digits of the dataset `digits`: `python -m mmx_datasets.render_spoken_digits`.

The clips ship with the package; this script is how they came about. It needs the program espeak-ng (1.51
was used) and gives the same file each time.
"""

import hashlib
import io
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.signal import resample_poly

from mmx.errors import DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE = 8000
COUNTRIES = "en-us en-us-nyc en-gb en-gb-scotland en-gb-x-rp en-gb-x-gbcwmd en-gb-x-gbclan en-029"
ACCENTS = COUNTRIES.split()
SPEAKERS = {
    "train": """
        f1 f2 f4 m1 m2 m3 m5 m7 Alex Andrea Annie Denis Diogo Gene Gene2 Henrique Lee Marco Nguyen adam
        belinda benjamin caleb ed iven iven2 john linda max michael pablo quincy rob steph steph2 zac
    """,
    "val": "f3 m4 Andy aunty Jacky david klatt klatt4 paul victor",
    "test": "f5 m6 m8 Alicia Hugo Mr anika boris edward grandma mario travis",
}
VOICES = {split: names.split() for split, names in SPEAKERS.items()}
"""Voice variants of espeak-ng a split: disjoint, and kin (Gene, Gene2) on the same side."""
TARGET = Path(__file__).parent / "data" / "spoken_digits.npz"
LOUD = 0.02
"""Share of the peak below which a clip's ends are cut off."""


def choose(key: str, count: int) -> int:
    """Give a number below `count` that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % count


def speak(word: str, voice: str) -> Float[np.ndarray, " samples"]:
    """Speak a word at 8 kHz, peak 1, its silent ends cut; accent, pitch and speed follow from the names."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise DataError("espeak-ng is not installed; install it (Debian: apt-get install espeak-ng)")
    key = f"{voice}/{word}"
    accent = ACCENTS[choose(f"accent/{key}", len(ACCENTS))]
    pitch, speed = 30 + choose(f"pitch/{key}", 41), 150 + choose(f"speed/{key}", 71)  # words a minute
    command = [program, "-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(speed), "--stdout", word]
    result = subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    with wave.open(io.BytesIO(result.stdout)) as file:
        rate, frames = file.getframerate(), file.readframes(2**30)
    sound = resample_poly(np.frombuffer(frames, dtype="<i2").astype(float), SAMPLE_RATE, rate)
    loud = np.flatnonzero(np.abs(sound) > LOUD * np.abs(sound).max())
    return (sound / np.abs(sound).max())[loud[0] : loud[-1] + 1][:SAMPLE_RATE]


def mu_law(sound: Float[np.ndarray, " samples"]) -> UInt8[np.ndarray, " samples"]:
    """Squeeze [-1, 1] into 8 bits, finer near zero (mu = 255)."""
    squeezed = np.sign(sound) * np.log1p(255 * np.abs(sound)) / np.log(256)
    return np.round((squeezed + 1) / 2 * 255).astype(np.uint8)


def main() -> None:
    """Render every word in every voice and write one file."""
    rows = [
        (split, voice, digit, mu_law(speak(word, voice)))
        for split, voices in VOICES.items()
        for voice in voices
        for digit, word in enumerate(WORDS)
    ]
    splits, voices, digits, clips = zip(*rows, strict=True)
    np.savez_compressed(
        TARGET,
        wave=np.concatenate(clips),
        offset=np.cumsum([0, *(len(clip) for clip in clips)], dtype=np.int32),
        label=np.array(digits, dtype=np.uint8),
        voice=np.array(voices),
        split=np.array(splits),
    )
    print(f"{TARGET.name}: {len(rows)} clips, {TARGET.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
