"""Tissue and kidney, as float pictures; tools and cues are drawn over them by ``draw``."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from surgery_r1.synthetic.scene import KidneyPose, seeded
from surgery_r1.synthetic.style import Style, noise

#: Share of the frame height by which the tissue canvas is larger than the frame on each side (room for drift).
MARGIN = 0.07


def _mix(a: np.ndarray, colour: tuple[float, float, float], weight: np.ndarray) -> np.ndarray:
    """Blend ``colour`` into ``a`` (3, h, w) by ``weight`` (h, w), in place."""
    for plane, value in zip(a, colour, strict=True):
        plane += (np.float32(value) - plane) * weight
    return a


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _vessels(rng, count: int, width: int, height: int, unit: float) -> np.ndarray:
    """Branching vessels as coverage 0..1, (height, width): random walks that lose width at each fork."""
    mask = Image.new("L", (width * 2, height * 2))
    draw = ImageDraw.Draw(mask)
    todo = []
    for _ in range(count):
        todo.append((rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 6.28), rng.uniform(0.008, 0.02), 0))
    while todo:
        x, y, angle, thick, depth = todo.pop()
        points, turn = [(2 * x, 2 * y)], 0.0
        for i in range(rng.randint(8, 16)):
            turn = 0.6 * turn + rng.uniform(-0.3, 0.3)
            angle += turn
            x += math.cos(angle) * unit * 0.04
            y += math.sin(angle) * unit * 0.04
            points.append((2 * x, 2 * y))
            if depth < 2 and i > 2 and rng.random() < 0.16:
                todo.append((x, y, angle + rng.choice((-1, 1)) * rng.uniform(0.4, 0.9), thick * 0.6, depth + 1))
        draw.line(points, fill=230 - 50 * depth, width=max(1, round(2 * thick * unit)), joint="curve")
    return np.asarray(mask.reduce(2), np.float32) / 255


def paint_tissue(style: Style, width: int, height: int, unit: int) -> np.ndarray:
    """Wet tissue, float32 (3, height, width) in 0..1.3; ``unit`` is the frame height in these pixels.

    Planes come first because blending whole planes is several times quicker than blending pixels.
    """
    rng = seeded("tissue", style.key)
    shape = (height, width)
    broad = noise(rng, 2.3, shape, style.fold_scale, unit)
    middle = noise(rng, 2.0, shape, style.fold_scale * 0.8, unit)
    patches = noise(rng, 1.7, shape, style.fold_scale * 1.1, unit)
    relief = 0.30 * broad + 0.10 * middle
    gy, gx = np.gradient(relief)
    slope = (gx * style.light[0] + gy * style.light[1]) * (unit * 0.11 * style.relief)
    rgb = np.empty((3, *shape), np.float32)
    rgb[:] = np.asarray(style.flesh, np.float32)[:, None, None]
    rgb = _mix(rgb, style.deep, 0.85 * _step(patches + 0.35 * middle, -0.1, 1.5))
    edge = 1.25 - 2.4 * style.fat_amount
    fat = _step(broad - 0.5 * patches + 0.25 * middle, edge, edge + 0.45)
    rgb = _mix(rgb, style.fat, 0.85 * fat)
    vessels = _vessels(rng, style.vessels, width, height, unit)
    rgb = _mix(rgb, style.vessel, 0.75 * vessels)
    rgb *= np.clip(0.86 - slope + 0.05 * middle, 0.35, 1.3)
    # Glare: a wet surface mirrors the lamp where it faces half-way to it, in small hard-edged patches.
    wet = noise(rng, 1.2, shape, style.fold_scale * 0.55, unit)
    glare = _step(-slope * 1.5 + 0.36 * wet + 0.2 * broad, 0.95, 1.25) * min(1.0, style.wetness)
    return _mix(rgb, (1.0, 0.97, 0.95), 0.85 * glare)


def kidney_outline(pose: KidneyPose) -> np.ndarray:
    """The organ's outline, (96, 2) in frame heights."""
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    u, v = np.cos(t), np.sin(t) + pose.bend * (np.cos(t) ** 2 - 0.4)
    x, y = u * pose.radii[0], v * pose.radii[1]
    c, s = math.cos(pose.turn), math.sin(pose.turn)
    return np.stack([pose.centre[0] + c * x - s * y, pose.centre[1] + s * x + c * y], axis=1)


def paint_kidney(canvas: np.ndarray, pose: KidneyPose, style: Style, unit: int) -> None:
    """Lay the organ over ``canvas`` (3, h, w), in place: a dome with its own gloss, and a shadow around it."""
    reach = 1.3 * max(pose.radii) * (1 + pose.bend * 0.6)
    h, w = canvas.shape[1:]
    x1, x2 = max(0, int((pose.centre[0] - reach) * unit)), min(w, int((pose.centre[0] + reach) * unit) + 1)
    y1, y2 = max(0, int((pose.centre[1] - reach) * unit)), min(h, int((pose.centre[1] + reach) * unit) + 1)
    if x2 <= x1 or y2 <= y1:
        return
    area = canvas[:, y1:y2, x1:x2]
    dx = ((np.arange(x1, x2, dtype=np.float32) + 0.5) / unit - pose.centre[0])[None, :]
    dy = ((np.arange(y1, y2, dtype=np.float32) + 0.5) / unit - pose.centre[1])[:, None]
    c, s = math.cos(pose.turn), math.sin(pose.turn)
    u, v = (c * dx + s * dy) / pose.radii[0], (-s * dx + c * dy) / pose.radii[1]
    v = v - pose.bend * (u * u - 0.4)
    r = np.sqrt(u * u + v * v)
    soft = 1.2 / (unit * min(pose.radii))
    area *= 1 - 0.45 * (1 - _step(r, 1.0, 1.28))
    rng = seeded("kidney", style.key)
    rough = noise(rng, 1.4, r.shape, 0.5, unit)
    dome = np.sqrt(np.clip(1 - r * r, 0, 1))
    lu, lv = c * style.light[0] + s * style.light[1], -s * style.light[0] + c * style.light[1]
    facing = 0.72 * dome + 0.40 * (u * lu + v * lv)
    shade = np.clip(0.62 + 0.62 * facing + 0.05 * rough, 0.3, 1.5)
    body = np.asarray(style.kidney, np.float32)[:, None, None] * shade
    # A short gloss streak on the lit shoulder, broken up by the surface.
    gloss = np.exp(-(((u - 0.48 * lu) / 0.36) ** 2) - ((v - 0.48 * lv) / 0.15) ** 2) + 0.10 * rough
    body = _mix(body, (1.0, 0.93, 0.9), 0.7 * min(1.0, style.wetness) * _step(gloss, 0.62, 0.95))
    inside = _step(-r, -1 - soft, -1 + soft)
    area *= 1 - inside
    area += body * inside
