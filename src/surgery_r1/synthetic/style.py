"""The look of a sequence: palette, camera and light, drawn from a seed. And the noise that tissue is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from surgery_r1.synthetic.scene import seeded

Colour = tuple[float, float, float]

#: Side of a noise tile; tiles wrap around, so any crop of any offset is seamless.
TILE = 256


@dataclass(frozen=True)
class Style:
    """Everything that differs between two sequences but not between two frames of one. Colours are RGB in 0..1."""

    key: str
    flesh: Colour
    deep: Colour
    fat: Colour
    kidney: Colour
    vessel: Colour
    shaft: Colour
    fat_amount: float  # 0..1, share of the tissue covered by fat lobules
    fold_scale: float  # frame heights per noise tile, large = broad folds
    relief: float  # strength of the bumps
    wetness: float  # strength of the glare
    vessels: int
    light: tuple[float, float]  # direction the light comes from, unit vector
    light_centre: tuple[float, float]  # where it falls, fractions of the frame
    vignette: float
    gain: float
    tint: Colour  # colour of the light
    grain: float
    blur: float  # frame heights
    zoom: float  # size of the tools
    circle: float | None  # radius of the endoscope's round mask, None where the frame is full


def _near(rng, colour: Colour, spread: float) -> Colour:
    return tuple(min(1.0, max(0.02, c + rng.uniform(-spread, spread))) for c in colour)  # type: ignore[return-value]


def make_style(namespace: str, seed: int, domain: int = 18) -> Style:
    """The style of ``seed`` in ``namespace``; equal seeds of two namespaces are unrelated.

    Keeping pretraining, train, val and domain 17 in namespaces of their own is what makes "never saw the tissue of
    val" true by construction.
    """
    rng = seeded("style", namespace, domain, seed)
    angle = rng.uniform(-2.6, -0.5)  # the light stands above the scene, as in a real tower set-up
    far = domain == 17
    if far:
        flesh, deep, fat = (0.72, 0.50, 0.38), (0.50, 0.27, 0.20), (0.86, 0.74, 0.44)
        kidney, tint = (0.46, 0.25, 0.17), (0.93, 1.0, 0.96)
    else:
        flesh = rng.choice([(0.84, 0.43, 0.40), (0.78, 0.34, 0.31), (0.87, 0.52, 0.47), (0.72, 0.28, 0.27)])
        deep, fat, kidney = (0.53, 0.13, 0.13), (0.90, 0.72, 0.42), (0.40, 0.13, 0.10)
        tint = rng.choice([(1.0, 0.97, 0.93), (1.0, 1.0, 1.0), (0.96, 0.98, 1.0), (1.0, 0.94, 0.90)])
    return Style(
        key=f"{namespace}/{domain}/{seed}",
        flesh=_near(rng, flesh, 0.06),
        deep=_near(rng, deep, 0.06),
        fat=_near(rng, fat, 0.06),
        kidney=_near(rng, kidney, 0.045),
        vessel=_near(rng, (0.42, 0.04, 0.07), 0.05),
        shaft=_near(rng, rng.choice([(0.20, 0.20, 0.22), (0.30, 0.31, 0.33), (0.13, 0.13, 0.15)]), 0.03),
        fat_amount=rng.uniform(0.35, 0.6) if far else rng.uniform(0.05, 0.35),
        fold_scale=rng.uniform(1.2, 2.4),
        relief=rng.uniform(0.7, 1.3),
        wetness=rng.uniform(0.5, 1.2),
        vessels=rng.randint(4, 11),
        light=(float(np.cos(angle)), float(np.sin(angle))),
        light_centre=(rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.62)),
        vignette=rng.uniform(0.4, 0.6) if far else rng.uniform(0.25, 0.65),
        gain=rng.uniform(1.05, 1.22) if far else rng.uniform(1.0, 1.25),
        tint=tint,
        grain=rng.uniform(2.0, 5.0) if far else rng.uniform(1.0, 4.0),
        blur=rng.choice([0.0, 0.0, 0.0015, 0.0025]),
        zoom=rng.uniform(0.86, 0.95) if far else rng.uniform(0.94, 1.08),
        circle=rng.uniform(0.56, 0.61) if far else None,
    )


@cache
def noise_tile(kind: int, exponent: float) -> np.ndarray:
    """A seamless noise tile, float32 (TILE, TILE), mean 0 and deviation 1. A pure function, cached."""
    rng = np.random.default_rng([20241, kind])
    freq = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]) * TILE
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
    spectrum *= np.where(freq < 1, 0.0, np.maximum(freq, 1.0) ** -exponent)
    field = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.ascontiguousarray((field - field.mean()) / field.std(), dtype=np.float32)


def noise(rng, exponent: float, shape: tuple[int, int], scale: float, per_height: int) -> np.ndarray:
    """Noise of ``shape`` (h, w) pixels where a tile spans ``scale`` frame heights of ``per_height`` pixels.

    Bilinear sampling along the two axes only (separable), which is several times cheaper than a free warp.
    """
    tile = noise_tile(rng.randrange(4), exponent)
    if rng.random() < 0.5:
        tile = tile.T
    step = TILE / (scale * per_height)
    ys = (np.arange(shape[0], dtype=np.float32) * step * rng.uniform(0.75, 1.33) + rng.uniform(0, TILE)) % TILE
    xs = (np.arange(shape[1], dtype=np.float32) * step + rng.uniform(0, TILE)) % TILE
    y0, x0 = ys.astype(np.int32), xs.astype(np.int32)
    fy, fx = (ys - y0)[:, None], (xs - x0)[None, :]
    rows = tile[y0 % TILE] * (1 - fy) + tile[(y0 + 1) % TILE] * fy
    return rows[:, x0 % TILE] * (1 - fx) + rows[:, (x0 + 1) % TILE] * fx
