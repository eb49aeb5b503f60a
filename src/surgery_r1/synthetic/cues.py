"""What a tool is doing, drawn at its tip: one cue for each of the 13 states, told apart by shape first.

A cue is drawn in two passes, ``under`` the tool and ``over`` it, in the frame of the jaws: x ahead of the tip, y to
the side, one unit = ``CUE`` frame heights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

from surgery_r1.synthetic.scene import ToolPose, seeded
from surgery_r1.synthetic.style import Style
from surgery_r1.synthetic.tools import jaw_axis

#: Unit of a cue in frame heights: a cue spans about two of them.
CUE = 0.105


class Pen:
    """Draws in the frame of the jaws; colours are RGB in 0..1, ``alpha`` in 0..1."""

    def __init__(self, draw: ImageDraw.ImageDraw, pose: ToolPose, style: Style, unit: float) -> None:
        self.draw, self.style = draw, style
        axis = jaw_axis(pose)
        self.rng = seeded("cue", pose.look, pose.name)
        side = np.array([-axis[1], axis[0]]) * self.rng.choice((-1.0, 1.0))
        self.basis = np.stack([axis, side]) * (CUE * pose.scale * unit)
        self.origin = np.asarray(pose.tip) * unit
        self.size = CUE * pose.scale * unit

    def _xy(self, points) -> list[float]:
        return (np.asarray(points, float) @ self.basis + self.origin).ravel().tolist()

    def _ink(self, colour, alpha: float) -> tuple[int, int, int, int]:
        r, g, b = (min(255, max(0, round(255 * c))) for c in colour)
        return r, g, b, round(255 * alpha)

    def shape(self, points, colour, alpha: float = 1.0) -> None:
        self.draw.polygon(self._xy(points), fill=self._ink(colour, alpha))

    def line(self, points, colour, width: float, alpha: float = 1.0) -> None:
        self.draw.line(
            self._xy(points), fill=self._ink(colour, alpha), width=max(1, round(width * self.size)), joint="curve"
        )

    def blob(
        self, x: float, y: float, rx: float, ry: float | None, colour, alpha: float = 1.0, wobble: float = 0.0
    ) -> None:
        ry = rx if ry is None else ry
        t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
        r = 1 + wobble * (np.sin(3 * t + self.rng.uniform(0, 6)) + 0.6 * np.sin(5 * t + self.rng.uniform(0, 6)))
        self.shape(np.stack([x + rx * r * np.cos(t), y + ry * r * np.sin(t)], axis=1), colour, alpha)

    def arc(self, x: float, y: float, r: float, a: float, b: float, colour, width: float, alpha: float = 1.0) -> None:
        t = np.linspace(a, b, 20)
        self.line(np.stack([x + r * np.cos(t), y + r * np.sin(t)], axis=1), colour, width, alpha)

    def soft(self, x: float, y: float, r: float, colour, alpha: float, steps: int = 5) -> None:
        """A blurred disc out of nested ones, cheaper than a blur."""
        for i in range(steps):
            self.blob(x, y, r * (1 - i / steps), None, colour, alpha / steps * 1.6)


def _bright(colour, lift: float):
    return tuple(c + (1 - c) * lift for c in colour)


def _dim(colour, factor: float):
    return tuple(c * factor for c in colour)


def _grasping(pen: Pen) -> None:
    """A pinched lump of tissue in front of the closed jaws, pale where the blood is pressed out."""
    flesh = pen.style.flesh
    pen.blob(0.52, 0, 1.0, 0.96, _dim(flesh, 0.25), 0.85)
    pen.blob(0.46, 0, 0.84, 0.78, (0.98, 0.62, 0.62))
    pen.blob(0.24, 0.0, 0.52, 0.5, (1.0, 0.86, 0.84))
    for y in (-0.72, -0.38, 0.0, 0.38, 0.72):
        pen.line([(0.0, y * 0.2), (0.5, y * 0.65), (1.12, y)], (0.55, 0.12, 0.14), 0.12)
    pen.blob(0.2, -0.28, 0.15, 0.09, (1, 1, 1), 0.9)


def _retraction(pen: Pen) -> None:
    """Tissue pulled up into a tent: a bright and a dark flank meeting at the tip."""
    flesh = pen.style.flesh
    pen.shape([(-0.15, 0.0), (1.75, -1.45), (2.05, 0.0), (1.75, 1.45)], _dim(flesh, 0.22), 0.8)
    pen.shape([(-0.2, -0.12), (1.62, -1.25), (1.85, -0.1), (-0.12, 0.06)], _bright(flesh, 0.62))
    pen.shape([(-0.12, 0.06), (1.85, -0.1), (1.62, 1.25), (-0.2, 0.16)], _dim(flesh, 0.6))
    for y in (-0.95, -0.62, -0.3, 0.4, 0.8):
        pen.line([(0.0, y * 0.08), (1.62, y)], _bright(flesh, 0.92) if y < 0 else _dim(flesh, 0.3), 0.07)


def _tissue_manipulation(pen: Pen) -> None:
    """A hollow pressed into the tissue, with a raised rim ahead of the open jaws."""
    flesh = pen.style.flesh
    pen.blob(0.05, 0, 1.12, 1.2, (1.0, 0.80, 0.78), 0.9)
    pen.blob(0.02, 0, 0.92, 1.0, _dim(flesh, 0.45))
    pen.blob(-0.04, 0, 0.70, 0.78, _dim(flesh, 0.22))


def _tool_manipulation(pen: Pen) -> None:
    """Another instrument part held across the jaws: a steel rod with coloured handles."""
    colour = pen.rng.choice([(0.12, 0.32, 0.85), (0.10, 0.40, 0.80)])
    pen.line([(-0.08, -1.3), (-0.08, 1.3)], (0.08, 0.08, 0.1), 0.46)
    pen.line([(-0.08, -1.25), (-0.08, 1.25)], (0.82, 0.84, 0.88), 0.34)
    pen.line([(-0.16, -1.2), (-0.16, 1.2)], (1, 1, 1), 0.09)
    for s in (-1, 1):
        pen.shape([(-0.36, s * 0.78), (0.20, s * 0.78), (0.20, s * 1.42), (-0.36, s * 1.42)], (0.05, 0.05, 0.15))
        pen.shape([(-0.29, s * 0.85), (0.13, s * 0.85), (0.13, s * 1.35), (-0.29, s * 1.35)], colour)


def _cutting(pen: Pen) -> None:
    """A fresh incision running ahead of the blades: black-red slit between bright lips."""
    t = np.linspace(0, 1, 9)
    mid = 0.12 * np.sin(3 * t)
    wide = 0.42 * np.sin(np.pi * np.clip(t * 0.95 + 0.05, 0, 1)) ** 0.7
    x = -0.35 + 2.05 * t
    lips = np.concatenate([np.stack([x, mid - wide * 1.3], 1), np.stack([x, mid + wide * 1.3], 1)[::-1]])
    slit = np.concatenate([np.stack([x, mid - wide * 0.8], 1), np.stack([x, mid + wide * 0.8], 1)[::-1]])
    pen.shape(lips, (0.93, 0.20, 0.16))
    pen.shape(slit, (0.22, 0.0, 0.02))
    pen.line(np.stack([x, mid - wide * 1.25], 1), _bright(pen.style.flesh, 0.6), 0.07)


def _cauterization_under(pen: Pen) -> None:
    pen.blob(0.1, 0, 0.78, 0.7, (0.30, 0.17, 0.08), 0.9, 0.10)
    pen.blob(0.12, 0, 0.52, 0.46, (0.05, 0.03, 0.03), 1.0, 0.10)


def _cauterization(pen: Pen) -> None:
    """Char under the tip, a white-hot spark, and smoke rising from it."""
    pen.soft(0.06, 0, 0.5, (1.0, 0.55, 0.05), 0.9)
    pen.blob(0.04, 0, 0.18, None, (1.0, 0.96, 0.7))
    # Smoke climbs in the picture, whatever the tool's direction.
    up = np.linalg.solve(pen.basis.T, np.array([0.0, -pen.size]))
    for i in range(7):
        s = 0.35 + 0.30 * i
        sway = 0.22 * math.sin(1.1 * i + 2)
        x, y = 0.3 + up[0] * s - up[1] * sway, up[1] * s + up[0] * sway
        pen.blob(x, y, 0.30 + 0.09 * i, None, (0.93, 0.93, 0.95), 0.42 - 0.035 * i, 0.07)


def _suction(pen: Pen) -> None:
    """A pool of blood with ripples, and a stream drawn up into the tip."""
    pen.blob(0.72, 0, 1.16, 0.92, (0.30, 0.0, 0.02), 0.9, 0.09)
    pen.blob(0.72, 0, 1.04, 0.80, (0.66, 0.02, 0.05), 1.0, 0.09)
    for r in (0.34, 0.62):
        pen.arc(0.62, 0, r, 0.5, 2.4, (1.0, 0.62, 0.62), 0.07)
        pen.arc(0.62, 0, r, 3.6, 5.6, (0.36, 0.0, 0.02), 0.07)
    pen.shape([(-0.1, -0.12), (-0.1, 0.12), (0.5, 0.3), (0.62, 0.0), (0.5, -0.3)], (0.95, 0.22, 0.24))
    pen.blob(1.15, -0.38, 0.2, 0.09, (1, 1, 1), 0.9)


def _thread(pen: Pen) -> tuple[float, float, float]:
    return pen.rng.choice([(0.60, 0.32, 0.98), (0.52, 0.30, 0.95)])


def _looping(pen: Pen) -> None:
    """A wide loop of thread around the tip, its end trailing off."""
    colour = _thread(pen)
    for ink, width in (((0.10, 0.04, 0.16), 0.21), (colour, 0.15), (_bright(colour, 0.55), 0.04)):
        pen.arc(0.35, 0, 0.95, 0, 2 * math.pi, ink, width)
        pen.line([(0.35, 0.95), (-0.15, 1.05), (-0.5, 1.4), (-0.2, 1.75)], ink, width)


def _suturing(pen: Pen) -> None:
    """A curved needle in the jaws and a row of finished stitches ahead."""
    colour = _thread(pen)
    flesh = pen.style.flesh
    pen.line([(0.75, -1.25), (0.75, 1.1)], _dim(flesh, 0.35), 0.2)
    for y in (-1.0, -0.55, -0.1, 0.35, 0.8):
        pen.line([(0.42, y), (1.1, y + 0.26)], (0.08, 0.03, 0.14), 0.17)
        pen.line([(0.42, y), (1.1, y + 0.26)], colour, 0.11)


def _suturing_over(pen: Pen) -> None:
    for ink, width in (((0.08, 0.08, 0.1), 0.24), ((0.95, 0.96, 1.0), 0.15)):
        pen.arc(-0.05, -0.62, 0.66, 1.5, 5.2, ink, width)
    pen.line([(-0.05, 0.04), (0.4, 0.5), (0.42, 0.8)], _thread(pen), 0.1)


def _clipping(pen: Pen) -> None:
    """A bare vessel across the tip with bright clips on it."""
    tube = (0.86, 0.72, 0.42)
    pen.line([(0.34, -1.5), (0.24, -0.5), (0.24, 0.5), (0.34, 1.5)], (0.25, 0.10, 0.06), 0.62)
    pen.line([(0.34, -1.5), (0.24, -0.5), (0.24, 0.5), (0.34, 1.5)], tube, 0.48)
    pen.line([(0.26, -1.45), (0.16, -0.5), (0.16, 0.5), (0.26, 1.45)], _bright(tube, 0.6), 0.10)


def _clipping_over(pen: Pen) -> None:
    for y in (-0.78, 0.0, 0.78):
        pen.shape([(-0.22, y - 0.2), (0.76, y - 0.2), (0.76, y + 0.2), (-0.22, y + 0.2)], (0.05, 0.1, 0.08))
        pen.shape([(-0.14, y - 0.12), (0.68, y - 0.12), (0.68, y + 0.12), (-0.14, y + 0.12)], (0.78, 0.98, 0.86))


def _staple(pen: Pen) -> None:
    """Two rows of fresh staples along a pressed seam."""
    flesh = pen.style.flesh
    pen.shape([(0.08, -1.4), (1.12, -1.4), (1.12, 1.4), (0.08, 1.4)], _dim(flesh, 0.42))
    pen.line([(0.6, -1.4), (0.6, 1.4)], _dim(flesh, 0.15), 0.12)
    for x in (0.32, 0.88):
        for y in (-1.1, -0.55, 0.0, 0.55, 1.1):
            pen.line([(x, y - 0.18), (x, y + 0.18)], (0.06, 0.06, 0.08), 0.30)
            pen.line([(x, y - 0.16), (x, y + 0.16)], (0.97, 0.97, 1.0), 0.18)


def _ultrasound_sensing(pen: Pen) -> None:
    """Waves spreading from the tip: concentric arcs over darkened tissue."""
    t = np.linspace(-0.85, 0.85, 12)
    fan = np.concatenate([[(-0.1, 0.0)], np.stack([1.85 * np.cos(t), 1.85 * np.sin(t)], 1)])
    pen.shape(fan, (0.02, 0.10, 0.16), 0.72)
    for r in (0.5, 0.92, 1.34, 1.76):
        pen.arc(-0.05, 0, r, -0.8, 0.8, (0.45, 1.0, 1.0), 0.14, 0.95)


_UNDER: dict[str, Callable[[Pen], None]] = {
    "Grasping": _grasping,
    "Retraction": _retraction,
    "Tissue_Manipulation": _tissue_manipulation,
    "Cutting": _cutting,
    "Cauterization": _cauterization_under,
    "Suction": _suction,
    "Looping": _looping,
    "Suturing": _suturing,
    "Clipping": _clipping,
    "Staple": _staple,
    "Ultrasound_Sensing": _ultrasound_sensing,
}
_OVER: dict[str, Callable[[Pen], None]] = {
    "Tool_Manipulation": _tool_manipulation,
    "Cauterization": _cauterization,
    "Suturing": _suturing_over,
    "Clipping": _clipping_over,
}


def draw_cue(draw: ImageDraw.ImageDraw, pose: ToolPose, style: Style, unit: float, *, over: bool) -> None:
    """Draw the part of the state's cue that lies under or over the tool; ``unit`` is pixels per frame height.

    ``draw`` must be in blending mode (``ImageDraw.Draw(image, "RGBA")``). Idle has no cue: that is its cue.
    """
    painter = (_OVER if over else _UNDER).get(pose.state)
    if painter:
        painter(Pen(draw, pose, style, unit))
