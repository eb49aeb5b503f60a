"""The eight instruments as polygons. Each is told apart by the outline of its jaws; colour only helps.

Jaws are drawn in their own frame: x from the wrist joint (0) to the tip (1), y to the side, one unit = jaw length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from surgery_r1._util.toml import load_toml
from surgery_r1.synthetic.scene import ToolPose, seeded

#: Jaw length and shaft half width, in frame heights, before style zoom.
JAW = 0.185
SHAFT = 0.034

#: The instruments as vector drawings, and how far the jaws open in each state.
_TABLE = load_toml(Path(__file__).with_name("tools.toml"))[0]

STEEL = (0.80, 0.82, 0.85)
DARK = (0.10, 0.10, 0.12)


@dataclass(frozen=True)
class Part:
    """A filled polygon, points (n, 2) in frame heights; an outline where ``edge`` has a colour. RGB in 0..1."""

    points: np.ndarray
    fill: tuple[float, float, float]
    edge: tuple[float, float, float] | None = DARK


def _ellipse(x: float, y: float, rx: float, ry: float, t: np.ndarray) -> np.ndarray:
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


_WHOLE = np.linspace(0, 2 * math.pi, 14, endpoint=False)
_HALF = np.linspace(-math.pi / 2, math.pi / 2, 10)
_KNUCKLE = _ellipse(0.0, 0.0, 1.02, 1.02, _WHOLE)


def _outline(shape: dict[str, Any]) -> np.ndarray:
    """Points (n, 2) of a shape of the table."""
    if "bar" in shape:
        x1, x2, y1, y2 = shape["bar"]
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    if "round" in shape:
        x, y, rx, ry = shape["round"]
        return _ellipse(x, y, rx, ry, _WHOLE)
    if "nose" in shape:
        x, rx, ry = shape["nose"]
        return np.concatenate([_ellipse(x, 0.0, rx, ry, _HALF), shape["points"]])
    return np.array(shape["points"])


def _turn(points: np.ndarray, angle: float, about: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    p = points - (about, 0.0)
    return np.stack([c * p[:, 0] - s * p[:, 1] + about, s * p[:, 0] + c * p[:, 1]], axis=1)


def _tone(colour, factor: float):
    return tuple(min(1.0, c * factor) for c in colour)


def _jaws_and_wrist(name: str, opening: float, tint: float) -> Iterator[Part]:
    """Shapes of a tool of the table, back to front, in the frame of the jaws."""
    tool = _TABLE["tools"][name]
    colours = {"steel": STEEL, "dark": DARK, **{own: _tone(rgb, tint) for own, rgb in tool["colours"].items()}}

    def drawn(shape: dict[str, Any], turn: float, side: float = 1.0, shade: float = 1.0) -> Iterator[Part]:
        fill, edge = shape["fill"], DARK if shape.get("outlined", True) else None
        tone = shape.get("tone", 1.0) * (shade if edge else 1.0)
        for offset in shape.get("at", [(0.0, 0.0)]):
            points = _turn(_outline(shape) + offset, opening * shape.get("turn", turn), shape.get("about", 0.0))
            yield Part(points * (1.0, side), _tone(colours[fill] if isinstance(fill, str) else fill, tone), edge)

    for side, shade in ((-1.0, 0.78), (1.0, 1.0)):
        for shape in tool.get("jaws", ()):
            yield from drawn(shape, 1.0, side, shade)
    for shape in tool["parts"]:
        yield from drawn(shape, 0.0)


def jaw_axis(pose: ToolPose) -> np.ndarray:
    """Unit vector in which the jaws point, (2,)."""
    d = np.subtract(pose.tip, pose.entry)
    d = d / max(1e-6, math.hypot(*d))
    c, s = math.cos(pose.bend), math.sin(pose.bend)
    return np.array([c * d[0] - s * d[1], s * d[0] + c * d[1]])


@lru_cache(maxsize=256)
def _jaw_parts(name: str, state: str, look: int) -> tuple[Part, ...]:
    """Wrist and jaws in their own frame (mirrored or not, as ``look`` says)."""
    rng = seeded("tool", look, name)
    tint, mirror = rng.uniform(0.88, 1.12), rng.choice((-1.0, 1.0))
    parts = _jaws_and_wrist(name, _TABLE["opening"][state] * rng.uniform(0.9, 1.1), tint)
    return tuple(replace(part, points=part.points * (1.0, mirror)) for part in parts)


@lru_cache(maxsize=256)
def _jaw_points(name: str, state: str, look: int) -> np.ndarray:
    return np.concatenate([part.points for part in _jaw_parts(name, state, look)])


@dataclass(frozen=True)
class _Placed:
    """Where a pose puts a tool, in frame heights: wrist, 2x2 basis of the jaws, and the shaft."""

    wrist: np.ndarray
    basis: np.ndarray
    start: np.ndarray
    back: np.ndarray
    across: np.ndarray  # from the shaft's axis to its edge
    knuckle: np.ndarray  # outline of the round joint at the shaft's end

    def band(self, a: float, b: float) -> np.ndarray:
        """Corners (4, 2) of what lies between ``a`` and ``b`` (-1 to 1) of the shaft's width."""
        start, back, across = self.start, self.back, self.across
        return np.array([start + across * a, back + across * a, back + across * b, start + across * b])


def _place(pose: ToolPose) -> _Placed:
    axis = jaw_axis(pose)
    length = JAW * pose.scale
    wrist = pose.tip - axis * length
    back = wrist - axis * (0.22 * length)
    run = back - pose.entry
    start = pose.entry - run * (0.35 / max(1e-6, math.hypot(*run)))
    run = back - start
    half = SHAFT * pose.scale * _TABLE["tools"][pose.name].get("thick", 1.0)
    across = np.array([-run[1], run[0]]) * (half / max(1e-6, math.hypot(*run)))
    basis = np.array([axis, (-axis[1], axis[0])]) * length
    return _Placed(wrist, basis, start, back, across, back + _KNUCKLE * half)


def silhouette(pose: ToolPose) -> tuple[np.ndarray, np.ndarray]:
    """What a box needs: the shaft's corners (4, 2) and all points of the rest (n, 2), in frame heights."""
    place = _place(pose)
    rest = place.wrist + _jaw_points(pose.name, pose.state, pose.look) @ place.basis
    return place.band(1.0, -1.0), np.concatenate([rest, place.knuckle])


#: Bands along the shaft that make it a cylinder: bright on one side, dark at both edges.
_BANDS = ((-1.0, 1.0, 0.6), (-0.86, 0.7, 1.0), (-0.7, 0.2, 1.5), (-0.55, -0.15, 2.3), (-0.45, -0.3, 3.4))


@lru_cache(maxsize=16)
def tool_parts(pose: ToolPose, shaft_colour: tuple[float, float, float] = (0.2, 0.2, 0.22)) -> tuple[Part, ...]:
    """All polygons of a tool, back to front, in frame heights. The shaft starts outside the frame."""
    place = _place(pose)
    bands = [Part(place.band(a, b), _tone(shaft_colour, tone), None) for a, b, tone in _BANDS]
    jaws = [
        replace(part, points=place.wrist + part.points @ place.basis)
        for part in _jaw_parts(pose.name, pose.state, pose.look)
    ]
    return (*bands, Part(place.knuckle, _tone(STEEL, 0.5)), *jaws)
