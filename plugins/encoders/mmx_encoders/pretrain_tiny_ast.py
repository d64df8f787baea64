"""Pretrain `tiny_ast` on synthetic words, never on digits: `python -m mmx_encoders.pretrain_tiny_ast`.

Words in many voices by espeak-ng (a program to install), at 8 kHz in windows of 1 s, shifted, stretched,
filtered and noisy. No voice is one of those by which the dataset `digits` is evaluated.
"""

import hashlib
import io
import shutil
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn import functional as F

from mmx.errors import DataError
from mmx_encoders.pretraining import pretrain
from mmx_encoders.tiny_ast import MELS, TinyAst

SPOKEN = """
    yes no up down left right on off stop go house tree bird cat dog happy bed marvin sheila wow visual
    forward backward follow learn red blue green yellow black white table chair window water river mountain
    music garden paper bottle kitchen doctor teacher summer winter monday friday morning evening cheese bread
    apple orange banana coffee sugar pepper silver golden metal wood stone fire earth rain snow cloud thunder
    moon star planet ship boat train plane road bridge city village king queen knife fork spoon fish mouse
    horse sheep chicken tiger hero narrow sister finish vision heaven given wait gate night light mine line
    hive dive thick shine fun gun foot food feather
"""
WORDS = SPOKEN.split()
SPEAKERS = """
    f1 f2 f4 m1 m2 m3 m5 m7 Alex Andrea Annie Denis Diogo Gene Gene2 Henrique Lee Marco Nguyen adam belinda
    benjamin caleb ed iven iven2 iven3 iven4 john linda max michael michel miguel Mike pablo pedro quincy rob
    robert steph steph2 steph3 zac croak whisper whisperf grandpa shelby norbert sandro RicishayMax gustave
"""
VOICES = SPEAKERS.split()
COUNTRIES = "en-us en-us-nyc en-gb en-gb-scotland en-gb-x-rp en-gb-x-gbcwmd en-gb-x-gbclan en-029"
ACCENTS = COUNTRIES.split()
TAKES = 2
BATCH, SAMPLES, SAMPLE_RATE = 128, 8000, 8000


def speak(word: str, voice: str, take: int) -> Int16[np.ndarray, " samples"]:
    """Speak a word at 8 kHz, its silent ends cut; accent, pitch and speed follow from the names."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise DataError("espeak-ng is not installed; install it (Debian: apt-get install espeak-ng)")
    draw = hashlib.blake2b(f"{word}/{voice}/{take}".encode(), digest_size=3).digest()
    accent, pitch, speed = ACCENTS[draw[0] % len(ACCENTS)], 20 + draw[1] % 61, 130 + draw[2] % 111
    command = [program, "-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(speed), "--stdout", word]
    result = subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    with wave.open(io.BytesIO(result.stdout)) as file:
        rate, frames = file.getframerate(), file.readframes(2**30)
    sound = resample_poly(np.frombuffer(frames, dtype="<i2").astype(np.float32), SAMPLE_RATE, rate)
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    return (sound / np.abs(sound).max() * 32767).astype(np.int16)


class Speech:
    """All clips end to end, drawn from with a fresh distortion each time."""

    def __init__(self) -> None:
        takes = list(product(range(len(WORDS)), VOICES, range(TAKES)))
        with ThreadPoolExecutor(2) as pool:
            clips = list(pool.map(lambda take: speak(WORDS[take[0]], *take[1:]), takes))
        self.wave = torch.from_numpy(np.concatenate(clips))
        self.length = torch.tensor([len(clip) for clip in clips])
        self.start = self.length.cumsum(0) - self.length
        self.label = torch.tensor([take[0] for take in takes])

    def draw(self, count: int) -> tuple[Float[Tensor, "count 8000"], Int[Tensor, " count"]]:
        """Give noisy waveforms of 1 s, each stretched (and its pitch moved) and shifted, and their words."""
        rows = torch.randint(len(self.label), (count,))
        rate = torch.exp(0.12 * torch.randn(count)).clamp(0.75, 1.35)
        length = self.length[rows]
        free = (SAMPLES - length / rate).clamp(min=0)
        begin = free * (1.25 * torch.rand(count) - 0.25).clamp(min=0)  # one in five begins at once
        place = (torch.arange(SAMPLES) - begin[:, None]) * rate[:, None]
        inside = (place >= 0) & (place < length[:, None] - 1)
        place = torch.where(inside, place, 0.0)
        left = place.long()
        fraction, index = place - left, self.start[rows, None] + left
        sound = torch.lerp(self.wave[index].float(), self.wave[index + 1].float(), fraction) / 32768
        sound = torch.where(inside, sound, 0.0)
        power = sound.square().sum(dim=1) / inside.sum(dim=1)
        return sound + noise(count) * power.sqrt()[:, None], self.label[rows]


def noise(count: int) -> Float[Tensor, "count 8000"]:
    """Give noise between white and brown, 30 to -5 dB under speech of power 1; next to none in one of six."""
    decibels = torch.where(torch.rand(count) < 1 / 6, 60.0, -5 + 35 * torch.rand(count))
    slope = 2 * torch.rand(count, 1) * (torch.rand(count, 1) < 0.5)
    frequency = torch.arange(1, SAMPLES // 2 + 2) / SAMPLES
    spectrum = torch.fft.rfft(torch.randn(count, SAMPLES)) * frequency ** (-slope / 2)
    sound = torch.fft.irfft(spectrum, SAMPLES)
    return sound / sound.std(dim=1, keepdim=True) * 10 ** (-decibels[:, None] / 20)


def distort(spectrogram: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch mels frames"]:
    """Colour as a microphone does, and blank a few bands and frames in half of the clips (SpecAugment)."""
    count, mels, frames = spectrogram.shape
    tone = F.interpolate(0.12 * torch.randn(count, 1, 5), mels, mode="linear").transpose(1, 2)
    spectrogram = (spectrogram + tone * (spectrogram > -1)).clamp(min=-1.0)
    for axis, size, widest in ((1, mels, MELS // 5), (2, frames, frames // 6)):
        width = torch.randint(widest + 1, (count, 1)) * (torch.rand(count, 1) < 0.5)
        start = torch.rand(count, 1) * (size - width)
        place = torch.arange(size)
        blank = (place >= start) & (place < start + width)
        spectrogram = spectrogram.masked_fill(blank.unsqueeze(3 - axis), -1.0)
    return spectrogram


def main(steps: int = 4000) -> None:
    """Speak the words, pretrain, and write the weights."""
    torch.manual_seed(0)
    speech = Speech()
    print(f"{len(speech.label)} clips of {len(WORDS)} words in {len(VOICES)} voices", flush=True)
    encoder = TinyAst(pretrained=False, sample_rate=SAMPLE_RATE)

    def draw() -> tuple[Tensor, Tensor]:
        sound, labels = speech.draw(BATCH)
        return distort(encoder.spectrogram(sound)), labels

    pretrain("tiny_ast", encoder, encoder.encode, draw, len(WORDS), steps)


if __name__ == "__main__":
    main()
