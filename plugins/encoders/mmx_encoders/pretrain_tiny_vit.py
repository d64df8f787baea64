"""Pretrain `tiny_vit` on rendered letters, never on digits: `python -m mmx_encoders.pretrain_tiny_vit`.

Letters and signs of several scripts, drawn with the fonts that matplotlib bundles, light on dark, bent,
thickened, blurred, noisy, and seen at resolutions from 8x8 to 28x28.
"""

# Letters that look alike are the point here.
# ruff: noqa: RUF001

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from mmx_encoders.pretraining import pretrain
from mmx_encoders.tiny_vit import SIDE, TinyVit

CHARACTERS = r"""
    A B Cc D E F G H Il| J Kk L M N Oo Pp Q R Ss T Uu Vv Ww Xx Yy Zz a b d e f g h i j m n q r t
    Γ Δ Θ Λ Ξ Π Σ Φ Ψ Ω α β γ δ ε ζ η θ λ μ ξ π ρ σ τ φ ψ ω
    Б Д Ж И Й Л Ц Ч Ш Щ Ъ Ы Э Ю Я Ђ Є Љ Њ Ћ Џ Ѣ Ѫ
    Ա Բ Գ Դ Ե Զ Է Ը Թ Ժ Ի Լ Խ Ծ Կ Հ Ձ Ղ Ճ Մ Յ Ն Շ Չ Պ Ջ Ռ Վ Տ Ր Ց Ւ Փ Ք
    ա բ գ դ ե զ է ը ժ ի խ ծ կ ձ ղ ճ մ շ պ ջ ռ վ փ ք
    ა ბ გ დ ე ვ ზ თ ი კ ლ მ ნ პ ჟ რ ს ტ უ ფ ქ ღ ყ შ ჩ ც ძ წ ჭ ხ ჯ ჰ
    ! ? & @ # $ € £ § ¶ + = ~ * / \ < > ( ) [ ] { } ← ↑ → ↓ ≠ ∞ ∫ √ ∂ ∀ ∃ ∈ ⊂ ∪ ∩ ⊕ □ △ ◇
"""
GLYPHS = CHARACTERS.split()
"""One class a word: upper and lower case of one shape, and what no font tells apart, share a class."""
CANVAS, INK = 48, 40
BATCH, CHUNKS = 128, 4
SIZES = (8, 8, 8, 10, 12, 14, 18, 22, 28, 28, 28)
"""Sides in pixels that images are seen at; each chunk of a batch draws one."""


def drawable(font: Path, character: str) -> bool:
    """Say whether the font has the character; Computer Modern is trusted with letters alone."""
    if font.stem.startswith("cm") and not (character.isascii() and character.isalpha()):
        return False
    if font.stem == "cmsy10" and not character.isupper():
        return False
    return ord(character) in FT2Font(str(font)).get_charmap()


def glyph(font: ImageFont.FreeTypeFont, character: str) -> UInt8[np.ndarray, "48 48"]:
    """Draw a character light on dark, its longer side 40 pixels."""
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).text((80, 60), character, fill=255, font=font)
    image = image.crop(image.getbbox())
    scale = INK / max(image.size)
    width, height = (max(2, round(scale * side)) for side in image.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image.resize((width, height)), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.asarray(canvas)


def glyphs() -> tuple[Float[Tensor, "glyphs 1 48 48"], Int[Tensor, "glyphs"]]:
    """Draw every character in every bundled text font that has it, and give their classes."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, labels = [], []
    for path in sorted(fonts.glob("*.ttf")):
        if path.stem.startswith(("cmex", "STIXSiz", "STIXNon", "LastResort")):
            continue
        font = ImageFont.truetype(str(path), 96)
        for label, characters in enumerate(GLYPHS):
            for character in characters:
                if drawable(path, character):
                    images.append(glyph(font, character))
                    labels.append(label)
    return torch.from_numpy(np.stack(images)).float()[:, None] / 255, torch.tensor(labels)


def uniform(low: float, high: float, count: int) -> Float[Tensor, "count 1 1 1"]:
    """Give one number an image."""
    return low + (high - low) * torch.rand(count, 1, 1, 1)


def thicken(images: Float[Tensor, "batch 1 48 48"]) -> Float[Tensor, "batch 1 48 48"]:
    """Make strokes thicker or thinner: blur, then cut at a random height."""
    taps = torch.exp(-torch.arange(-4, 5).float().square() / (2 * 1.4**2))
    taps = taps / taps.sum()
    blurred = F.conv2d(
        F.conv2d(images, taps.view(1, 1, 9, 1), padding=(4, 0)), taps.view(1, 1, 1, 9), padding=(0, 4)
    )
    height = uniform(0.08, 0.5, len(images))
    ground = torch.sigmoid(-12 * height)
    return (torch.sigmoid(12 * (blurred - height)) - ground) / (1 - ground)


def bend(images: Float[Tensor, "batch 1 48 48"]) -> Float[Tensor, "batch 1 28 28"]:
    """Rotate, shear, stretch, shift and warp elastically, onto 28x28 pixels."""
    count = len(images)
    angle = 0.22 * torch.randn(count)
    shear = uniform(-0.4, 0.4, count).flatten()
    across, along = (torch.exp(uniform(-0.25, 0.4, count)).flatten() for _ in "xy")  # above 1: smaller
    rows = torch.stack(
        [across * angle.cos(), across * (shear - angle.sin()), along * angle.sin(), along * angle.cos()],
        dim=1,
    )
    shift = 0.12 * torch.randn(count, 2, 1)
    grid = F.affine_grid(
        torch.cat([rows.view(count, 2, 2), shift], dim=2), [count, 1, SIDE, SIDE], align_corners=False
    )
    strength = uniform(0.0, 0.14, count)
    warp = F.interpolate(strength * torch.randn(count, 2, 5, 5), (SIDE, SIDE), mode="bicubic")
    return F.grid_sample(images, grid + warp.permute(0, 2, 3, 1), align_corners=False)


def see(images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
    """See at a lower resolution, contrast and signal-to-noise ratio, then resize as the encoder does."""
    count, size = len(images), SIZES[int(torch.randint(len(SIZES), ()))]
    images = F.interpolate(images, (size, size), mode="area")
    images = uniform(0.55, 1.0, count) * images + uniform(-0.05, 0.15, count)
    strength = uniform(0.0, 0.6, count) * (uniform(0.0, 1.0, count) < 0.6)
    images = images + strength * math.sqrt(size / SIDE) * torch.randn_like(images)
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def main(steps: int = 6000) -> None:
    """Draw the glyphs, pretrain, and write the weights."""
    torch.manual_seed(0)
    images, labels = glyphs()
    print(f"{len(images)} glyphs of {len(GLYPHS)} classes")
    by_class = [torch.nonzero(labels == label).flatten() for label in range(len(GLYPHS))]

    def draw() -> tuple[Tensor, Tensor]:
        classes = torch.randint(len(GLYPHS), (BATCH,))
        rows = torch.stack(
            [r[int(torch.randint(len(r), ()))] for r in (by_class[c] for c in classes.tolist())]
        )
        bent = bend(thicken(images[rows]))
        return torch.cat([see(chunk) for chunk in bent.chunk(CHUNKS)]), classes

    encoder = TinyVit(pretrained=False)
    pretrain("tiny_vit", encoder, encoder, draw, len(GLYPHS), steps)


if __name__ == "__main__":
    main()
