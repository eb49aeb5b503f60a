"""What a tool is doing, drawn at its tip: one cue for each of the 13 states, told apart by shape first.

A cue is drawn in two passes, ``under`` the tool and ``over`` it, in the frame of the jaws: x ahead of the tip, y to
the side, one unit = ``CUE`` frame heights. Most are strokes of a table, ``cues.toml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from surgery_r1._util.toml import load_toml
from surgery_r1.synthetic.scene import ToolPose, seeded
from surgery_r1.synthetic.style import Style
from surgery_r1.synthetic.tools import jaw_axis

#: Strokes of the cues that need no formula, by state.
_TABLE = load_toml(Path(__file__).with_name("cues.toml"))[0]
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

    def blob(self, ellipse: Sequence[float], colour, alpha: float = 1.0, wobble: float = 0.0) -> None:
        """A filled ellipse (x, y, rx, ry); ``wobble`` makes its outline uneven."""
        x, y, rx, ry = ellipse
        t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
        r = 1 + wobble * (np.sin(3 * t + self.rng.uniform(0, 6)) + 0.6 * np.sin(5 * t + self.rng.uniform(0, 6)))
        self.shape(np.stack([x + rx * r * np.cos(t), y + ry * r * np.sin(t)], axis=1), colour, alpha)

    def arc(self, circle: Sequence[float], colour, width: float, alpha: float = 1.0) -> None:
        """A line along (x, y, r, from, to), angles in radians."""
        x, y, r, start, stop = circle
        t = np.linspace(start, stop, 20)
        self.line(np.stack([x + r * np.cos(t), y + r * np.sin(t)], axis=1), colour, width, alpha)

    def soft(self, x: float, y: float, r: float, colour, alpha: float) -> None:
        """A blurred disc out of five nested ones, cheaper than a blur."""
        for i in range(5):
            radius = r * (1 - i / 5)
            self.blob((x, y, radius, radius), colour, alpha / 5 * 1.6)


def _bright(colour, lift: float):
    return tuple(c + (1 - c) * lift for c in colour)


def _cutting(pen: Pen) -> None:
    """A fresh incision running ahead of the blades: black-red slit between bright lips."""
    t = np.linspace(0, 1, 9)
    mid = 0.12 * np.sin(3 * t)
    wide = 0.42 * np.sin(np.pi * np.clip(t * 0.95 + 0.05, 0, 1)) ** 0.7
    x = -0.35 + 2.05 * t

    def lip(share: float) -> np.ndarray:
        return np.stack([x, mid + wide * share], 1)

    pen.shape(np.concatenate([lip(-1.3), lip(1.3)[::-1]]), (0.93, 0.20, 0.16))
    pen.shape(np.concatenate([lip(-0.8), lip(0.8)[::-1]]), (0.22, 0.0, 0.02))
    pen.line(lip(-1.25), _bright(pen.style.flesh, 0.6), 0.07)


def _cauterization(pen: Pen) -> None:
    """Char under the tip, a white-hot spark, and smoke rising from it."""
    pen.soft(0.06, 0, 0.5, (1.0, 0.55, 0.05), 0.9)
    pen.blob((0.04, 0, 0.18, 0.18), (1.0, 0.96, 0.7))
    # Smoke climbs in the picture, whatever the tool's direction.
    up = np.linalg.solve(pen.basis.T, np.array([0.0, -pen.size]))
    for i in range(7):
        s = 0.35 + 0.30 * i
        sway = 0.22 * math.sin(1.1 * i + 2)
        x, y = 0.3 + up[0] * s - up[1] * sway, up[1] * s + up[0] * sway
        size = 0.30 + 0.09 * i
        pen.blob((x, y, size, size), (0.93, 0.93, 0.95), 0.42 - 0.035 * i, 0.07)


def _ultrasound_sensing(pen: Pen) -> None:
    """Waves spreading from the tip: concentric arcs over darkened tissue."""
    t = np.linspace(-0.85, 0.85, 12)
    fan = np.concatenate([[(-0.1, 0.0)], np.stack([1.85 * np.cos(t), 1.85 * np.sin(t)], 1)])
    pen.shape(fan, (0.02, 0.10, 0.16), 0.72)
    for r in (0.5, 0.92, 1.34, 1.76):
        pen.arc((-0.05, 0, r, -0.8, 0.8), (0.45, 1.0, 1.0), 0.14, 0.95)


#: Cues that follow a formula, by state and whether they lie over the tool.
_FORMULAS: dict[tuple[str, bool], Callable[[Pen], None]] = {
    ("Cutting", False): _cutting,
    ("Cauterization", True): _cauterization,
    ("Ultrasound_Sensing", False): _ultrasound_sensing,
}


def _stroke(pen: Pen, stroke: Mapping[str, Any], colours: Mapping[str, Any]) -> None:
    """Draw one stroke of the table; ``colours`` are those that it may call by a name."""
    rgb = colours[stroke["colour"]] if isinstance(stroke["colour"], str) else stroke["colour"]
    colour = _bright([c * stroke.get("tone", 1.0) for c in rgb], stroke.get("lift", 0.0))
    alpha = stroke.get("alpha", 1.0)
    if "blob" in stroke:
        pen.blob(stroke["blob"], colour, alpha, stroke.get("wobble", 0.0))
    if "arc" in stroke:
        pen.arc(stroke["arc"], colour, stroke["width"], alpha)
    for offset in np.array(stroke.get("at", [(0.0, 0.0)])):
        if "polygon" in stroke:
            pen.shape(stroke["polygon"] + offset, colour, alpha)
        for line in stroke.get("lines", ()):
            pen.line(line + offset, colour, stroke["width"], alpha)


def draw_cue(draw: ImageDraw.ImageDraw, pose: ToolPose, style: Style, unit: float, *, over: bool) -> None:
    """Draw the part of the state's cue that lies under or over the tool; ``unit`` is pixels per frame height.

    ``draw`` must be in blending mode (``ImageDraw.Draw(image, "RGBA")``). Idle has no cue: that is its cue.
    """
    pen = Pen(draw, pose, style, unit)
    if formula := _FORMULAS.get((pose.state, over)):
        formula(pen)
    cue = _TABLE.get(pose.state, {})
    colours = {"flesh": style.flesh, "own": pen.rng.choice(cue["own"]) if "own" in cue else None}
    for stroke in cue.get("over" if over else "under", ()):
        _stroke(pen, stroke, colours)
