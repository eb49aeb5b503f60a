"""A frame under another light and another camera: brightness, colour cast, gamma and noise (ours).

The same ranges as the tiny base was pretrained under (docs/tiny_base). Labels stay as they are.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from surgery_r1.data.mirroring import flip_image

if TYPE_CHECKING:
    from PIL.Image import Image


def look(flip: str, strength: float = 0.0, seed: str = "") -> str:
    """How an image is shown, as one word: a flip, and if its colours are changed, how far and by which seed.

    >>> look("both"), look("both", 0.5, "0:frame.png")
    ('both', 'both~0.5~0:frame.png')
    """
    return f"{flip}~{strength}~{seed}" if strength else flip


def seen_as(look: str, image: Image) -> Image:
    """``image`` (RGB) with the :func:`look` given."""
    flip, *colours = look.split("~", 2)
    image = flip_image(image, flip)
    return change_colours(image, float(colours[0]), colours[1]) if colours else image


def change_colours(image: Image, strength: float, seed: str) -> Image:
    """``image`` (RGB) with light and colours drawn by ``seed``.

    Args:
        strength: 1 draws a gain in .8 to 1.2, one for each channel in .9 to 1.1, a gamma in .8 to 1.25, and adds
            noise of 4 grey levels; .5 goes half as far, 0 changes nothing.
    """
    from PIL import Image

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    gain = 1 + strength * (rng.uniform(-0.2, 0.2) + rng.uniform(-0.1, 0.1, 3))
    gamma = 1.25 ** (strength * rng.uniform(-1, 1))
    pixels = np.clip(np.asarray(image, np.float32) / 255 * gain.astype(np.float32), 0, 1) ** np.float32(gamma)
    pixels += rng.normal(0, 0.015 * strength, pixels.shape).astype(np.float32)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
