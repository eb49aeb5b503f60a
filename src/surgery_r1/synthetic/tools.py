"""The eight instruments as polygons. Each is told apart by the outline of its jaws; colour only helps.

Jaws are drawn in their own frame: x from the wrist joint (0) to the tip (1), y to the side, one unit = jaw length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from surgery_r1.synthetic.scene import ToolPose, seeded

#: Jaw length and shaft half width, in frame heights, before style zoom.
JAW = 0.185
SHAFT = 0.034

#: Opening of each jaw from the axis (radians): what the hand is doing shows in the jaws too.
OPENING = {
    "Idle": 0.03,
    "Grasping": 0.10,
    "Retraction": 0.06,
    "Tissue_Manipulation": 0.42,
    "Tool_Manipulation": 0.20,
    "Cutting": 0.40,
    "Cauterization": 0.22,
    "Suction": 0.15,
    "Looping": 0.10,
    "Suturing": 0.12,
    "Clipping": 0.28,
    "Staple": 0.20,
    "Ultrasound_Sensing": 0.15,
}

STEEL = (0.80, 0.82, 0.85)
DARK = (0.10, 0.10, 0.12)


@dataclass(frozen=True)
class Part:
    """A filled polygon, points (n, 2) in frame heights; an outline where ``edge`` has a colour. RGB in 0..1."""

    points: np.ndarray
    fill: tuple[float, float, float]
    edge: tuple[float, float, float] | None = DARK


def _round(x: float, y: float, rx: float, ry: float, n: int = 14) -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def _bar(x1: float, x2: float, y1: float, y2: float) -> np.ndarray:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _turn(points: np.ndarray, angle: float, about: float = 0.0) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    p = points - (about, 0.0)
    return np.stack([c * p[:, 0] - s * p[:, 1] + about, s * p[:, 0] + c * p[:, 1]], axis=1)


def _flip(points: np.ndarray) -> np.ndarray:
    return points * (1.0, -1.0)


def _tone(colour, factor: float):
    return tuple(min(1.0, c * factor) for c in colour)


def _pair(outline, opening: float, colour, about: float = 0.0, extras=()) -> list[Part]:
    """Two mirrored jaws, the lower one in shade; ``extras`` are (points, colour) drawn on each."""
    parts = []
    for side, tone in ((-1, 0.78), (1, 1.0)):
        for points, fill, edge in [(np.asarray(outline, float), _tone(colour, tone), DARK), *extras]:
            jaw = _turn(points, opening, about)
            parts.append(Part(jaw if side > 0 else _flip(jaw), fill, edge))
    return parts


def _bipolar_forceps(opening: float, tint) -> list[Part]:
    tine = [(0.0, 0.02), (0.02, 0.15), (0.25, 0.25), (0.55, 0.23), (0.85, 0.11), (1.02, 0.0), (0.85, 0.01)]
    tine += [(0.55, 0.11), (0.28, 0.12), (0.14, 0.04)]
    blue = _tone((0.36, 0.52, 0.86), tint)
    return [
        *_pair(tine, opening, STEEL),
        Part(_bar(-0.34, 0.08, -0.17, 0.17), blue),
        Part(_bar(-0.26, -0.16, -0.17, 0.17), _tone(blue, 0.6), None),
    ]


def _monopolar_curved_scissors(opening: float, tint) -> list[Part]:
    blade = np.array([(0.1, -0.08), (0.15, 0.09), (0.5, 0.13), (0.8, 0.25), (1.02, 0.46), (0.93, 0.2), (0.6, -0.03)])
    blade -= (0.0, 0.06)
    sleeve = _tone((0.86, 0.50, 0.22), tint)
    return [
        Part(_turn(blade, -opening, 0.15), _tone(STEEL, 0.72)),
        Part(_turn(blade, opening * 0.8, 0.15), STEEL),
        Part(
            np.array([(-0.55, -0.22), (0.05, -0.24), (0.26, -0.11), (0.26, 0.11), (0.05, 0.24), (-0.55, 0.22)]), sleeve
        ),
        Part(_bar(-0.5, 0.1, -0.13, -0.05), _tone(sleeve, 1.3), None),
    ]


def _prograsp_forceps(opening: float, tint) -> list[Part]:
    jaw = [(-0.02, 0.0), (0.0, 0.22), (0.3, 0.3), (0.8, 0.3), (0.97, 0.2), (1.0, 0.02)]
    window = (_round(0.52, 0.16, 0.24, 0.065), _tone(DARK, 1.6), None)
    teeth = [(_bar(x, x + 0.05, 0.0, 0.06), DARK, None) for x in (0.2, 0.36, 0.52, 0.68, 0.84)]
    steel = _tone((0.72, 0.74, 0.76), tint)
    return [
        *_pair(jaw, opening, steel, 0.0, [window, *teeth]),
        Part(_bar(-0.36, 0.06, -0.2, 0.2), _tone(steel, 0.62)),
        Part(_round(-0.02, 0, 0.11, 0.11), _tone(steel, 1.2)),
    ]


def _suction(opening: float, tint) -> list[Part]:
    tube = [(-0.5, -0.14), (0.86, -0.14), (0.97, -0.09), (1.0, 0.0), (0.97, 0.09), (0.86, 0.14), (-0.5, 0.14)]
    grey = _tone((0.86, 0.88, 0.9), tint)
    holes = [Part(_round(x, y, 0.045, 0.04), DARK, None) for x in (0.3, 0.5, 0.7) for y in (-0.06, 0.07)]
    return [
        Part(np.array(tube), grey),
        Part(_bar(-0.5, 0.84, -0.11, -0.03), _tone(grey, 1.2), None),
        *holes,
        Part(_round(0.93, 0.0, 0.05, 0.09), DARK, None),
        Part(_bar(-0.62, -0.42, -0.2, 0.2), _tone(grey, 0.45)),
    ]


def _ultrasound_probe(opening: float, tint) -> list[Part]:
    t = np.linspace(-math.pi / 2, math.pi / 2, 10)
    nose = np.stack([0.68 + 0.34 * np.cos(t), 0.36 * np.sin(t)], axis=1)
    body = np.concatenate([nose, [(0.05, 0.36), (-0.08, 0.24), (-0.08, -0.24), (0.05, -0.36)]])
    white = _tone((0.93, 0.93, 0.88), tint)
    face = np.stack([0.66 + 0.27 * np.cos(t), 0.24 * np.sin(t)], axis=1)
    return [
        Part(np.array([(-0.9, 0.3), (-0.3, 0.34), (0.1, 0.2), (0.1, 0.3), (-0.3, 0.45), (-0.9, 0.4)]), DARK, None),
        Part(body, white),
        Part(np.concatenate([face, [(0.42, 0.24), (0.42, -0.24)]]), _tone((0.16, 0.30, 0.42), tint), None),
        Part(_bar(0.08, 0.34, -0.06, 0.06), _tone(white, 0.6)),
        Part(_bar(-0.34, -0.02, -0.16, 0.16), _tone(STEEL, 0.6)),
    ]


def _stapler(opening: float, tint) -> list[Part]:
    anvil = np.array([(-0.1, -0.03), (1.06, -0.03), (1.12, -0.12), (1.06, -0.24), (-0.1, -0.3)])
    base = np.array([(-0.1, 0.0), (1.02, 0.0), (1.06, 0.1), (0.98, 0.34), (-0.1, 0.34)])
    blue = _tone((0.24, 0.34, 0.62), tint)
    deck = np.array([(0.02, 0.0), (0.98, 0.0), (0.98, 0.1), (0.02, 0.1)])
    dots = [
        Part(_turn(_bar(x, x + 0.07, 0.16, 0.26), opening), (0.93, 0.93, 0.95), None)
        for x in np.arange(0.1, 0.95, 0.17)
    ]
    return [
        Part(_turn(anvil, -opening * 0.7), _tone(STEEL, 0.85)),
        Part(_turn(base, opening), blue),
        Part(_turn(deck, opening), (0.95, 0.95, 0.97), None),
        *dots,
        Part(_bar(-0.5, 0.02, -0.3, 0.34), _tone(DARK, 2.6)),
        Part(_bar(-0.42, -0.3, -0.3, 0.34), STEEL, None),
    ]


def _large_needle_driver(opening: float, tint) -> list[Part]:
    jaw = [(0.28, 0.0), (0.3, 0.24), (0.5, 0.25), (0.98, 0.1), (1.0, 0.0)]
    hatch = [
        (np.array([(x, 0.0), (x + 0.05, 0.0), (x + 0.12, 0.12), (x + 0.07, 0.12)]), DARK, None)
        for x in (0.5, 0.64, 0.78)
    ]
    gold = _tone((0.90, 0.74, 0.30), tint)
    return [
        *_pair(jaw, opening, gold, 0.3, hatch),
        Part(
            np.array([(-0.3, -0.2), (0.2, -0.27), (0.42, -0.14), (0.42, 0.14), (0.2, 0.27), (-0.3, 0.2)]),
            _tone(STEEL, 0.9),
        ),
        Part(_round(0.2, 0, 0.13, 0.13), DARK),
        Part(_round(0.2, 0, 0.06, 0.06), STEEL, None),
    ]


def _clip_applier(opening: float, tint) -> list[Part]:
    claw = [(0.0, 0.1), (0.2, 0.36), (0.72, 0.4), (1.0, 0.14), (1.02, 0.0), (0.9, 0.02), (0.84, 0.12), (0.66, 0.27)]
    claw += [(0.3, 0.24), (0.12, 0.02)]
    green = _tone((0.30, 0.62, 0.42), tint)
    return [
        *_pair(claw, opening * 0.6, STEEL),
        Part(_bar(-0.4, 0.12, -0.17, 0.17), green),
        Part(_bar(-0.28, -0.2, -0.17, 0.17), _tone(green, 0.5), None),
        Part(_bar(-0.12, -0.04, -0.17, 0.17), _tone(green, 0.5), None),
    ]


_SHAPES = {
    "bipolar_forceps": _bipolar_forceps,
    "monopolar_curved_scissors": _monopolar_curved_scissors,
    "prograsp_forceps": _prograsp_forceps,
    "suction": _suction,
    "ultrasound_probe": _ultrasound_probe,
    "stapler": _stapler,
    "large_needle_driver": _large_needle_driver,
    "clip_applier": _clip_applier,
}
_THICK = {"stapler": 1.35, "suction": 0.8, "ultrasound_probe": 0.9}


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
    parts = _SHAPES[name](OPENING[state] * rng.uniform(0.9, 1.1), tint)
    return tuple(Part(part.points * (1.0, mirror), part.fill, part.edge) for part in parts)


@lru_cache(maxsize=256)
def _jaw_points(name: str, state: str, look: int) -> np.ndarray:
    return np.concatenate([part.points for part in _jaw_parts(name, state, look)])


def _place(pose: ToolPose) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Wrist, 2x2 basis of the jaws, both ends of the shaft's axis, and the shaft's half width."""
    axis = jaw_axis(pose)
    length = JAW * pose.scale
    wrist = pose.tip - axis * length
    back = wrist - axis * (0.22 * length)
    run = back - pose.entry
    start = pose.entry - run * (0.35 / max(1e-6, math.hypot(*run)))
    basis = np.array([axis, (-axis[1], axis[0])]) * length
    return wrist, basis, start, back, SHAFT * pose.scale * _THICK.get(pose.name, 1.0)


def silhouette(pose: ToolPose) -> tuple[np.ndarray, np.ndarray]:
    """What a box needs: the shaft's corners (4, 2) and all points of the rest (n, 2), in frame heights."""
    wrist, basis, start, back, half = _place(pose)
    run = back - start
    across = np.array([-run[1], run[0]]) * (half / max(1e-6, math.hypot(*run)))
    shaft = np.array([start + across, back + across, back - across, start - across])
    rest = wrist + _jaw_points(pose.name, pose.state, pose.look) @ basis
    return shaft, np.concatenate([rest, back + _KNUCKLE * half])


_KNUCKLE = _round(0.0, 0.0, 1.02, 1.02)
#: Bands along the shaft that make it a cylinder: bright on one side, dark at both edges.
_BANDS = ((-1.0, 1.0, 0.6), (-0.86, 0.7, 1.0), (-0.7, 0.2, 1.5), (-0.55, -0.15, 2.3), (-0.45, -0.3, 3.4))


@lru_cache(maxsize=16)
def tool_parts(pose: ToolPose, shaft_colour: tuple[float, float, float] = (0.2, 0.2, 0.22)) -> tuple[Part, ...]:
    """All polygons of a tool, back to front, in frame heights. The shaft starts outside the frame."""
    wrist, basis, start, back, half = _place(pose)
    run = back - start
    across = np.array([-run[1], run[0]]) * (half / max(1e-6, math.hypot(*run)))
    parts = []
    for a, b, tone in _BANDS:
        band = np.array([start + across * a, back + across * a, back + across * b, start + across * b])
        parts.append(Part(band, _tone(shaft_colour, tone), None))
    parts.append(Part(back + _KNUCKLE * half, _tone(STEEL, 0.5)))
    for part in _jaw_parts(pose.name, pose.state, pose.look):
        parts.append(Part(wrist + part.points @ basis, part.fill, part.edge))
    return tuple(parts)
