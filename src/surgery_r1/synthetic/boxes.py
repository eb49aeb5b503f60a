"""Tight boxes of what the camera sees: polygons clipped to the frame and to the endoscope's round mask."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from surgery_r1.geometry import Box, LocationRule, center, quadrant
from surgery_r1.synthetic.scene import ToolPose
from surgery_r1.synthetic.tools import silhouette, tool_parts


def _clip(points: list, nx: float, ny: float, limit: float) -> list:
    """Points of a polygon where nx * x + ny * y <= limit (one step of Sutherland-Hodgman)."""
    out: list[tuple[float, float]] = []
    if not points:
        return out
    px, py = points[-1]
    pd = nx * px + ny * py - limit
    for x, y in points:
        d = nx * x + ny * y - limit
        if (d <= 0) != (pd <= 0):
            t = pd / (pd - d)
            out.append((px + t * (x - px), py + t * (y - py)))
        if d <= 0:
            out.append((x, y))
        px, py, pd = x, y, d
    return out


@lru_cache(maxsize=64)
def view_edges(aspect: float, circle: float | None) -> tuple[tuple[float, float, float], ...]:
    """Half planes (nx, ny, limit) whose common part is what the camera sees, in frame heights."""
    edges = [(-1.0, 0.0, 0.0), (1.0, 0.0, aspect), (0.0, -1.0, 0.0), (0.0, 1.0, 1.0)]
    if circle is not None:
        for i in range(64):
            nx, ny = math.cos(i * math.pi / 32), math.sin(i * math.pi / 32)
            edges.append((nx, ny, nx * aspect / 2 + ny * 0.5 + circle))
    return tuple(edges)


def visible_box(polygons, aspect: float, circle: float | None = None) -> Box | None:
    """Tight xyxy box, in frame heights, around the visible part of ``polygons``; None where nothing is seen."""
    x1 = y1 = math.inf
    x2 = y2 = -math.inf
    edges = view_edges(aspect, circle)
    for polygon in polygons:
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        points = polygon.tolist()
        if circle is not None or low.min() < 0 or high[0] > aspect or high[1] > 1:
            for nx, ny, limit in edges:
                points = _clip(points, nx, ny, limit)
            if not points:
                continue
            low, high = np.min(points, axis=0), np.max(points, axis=0)
        x1, y1 = min(x1, float(low[0])), min(y1, float(low[1]))
        x2, y2 = max(x2, float(high[0])), max(y2, float(high[1]))
    return None if x2 <= x1 or y2 <= y1 else (x1, y1, x2, y2)


def tool_box(pose: ToolPose, aspect: float, circle: float | None = None) -> Box | None:
    """Box of a tool's shaft, wrist and jaws, cue excluded, in frame heights; None where nothing is seen."""
    shaft, rest = silhouette(pose)
    x1, y1 = rest.min(axis=0).tolist()
    x2, y2 = rest.max(axis=0).tolist()
    inside = x1 >= 0 and y1 >= 0 and x2 <= aspect and y2 <= 1
    if inside and circle is not None:
        inside = float(np.hypot(rest[:, 0] - aspect / 2, rest[:, 1] - 0.5).max()) < circle * 0.99
    if not inside:  # seldom: some of the wrist is cut off too, so every polygon has to be clipped
        return visible_box([part.points for part in tool_parts(pose)], aspect, circle)
    box = visible_box([shaft], aspect, circle)
    return (x1, y1, x2, y2) if box is None else (min(x1, box[0]), min(y1, box[1]), max(x2, box[2]), max(y2, box[3]))


def location_of(box: Box, aspect: float) -> str:
    """The location label of a box: which quarter of the image its centre is in, y downward.

    >>> location_of((0.0, 0.0, 0.5, 0.5), 1.25)
    'left-top'
    """
    return str(quadrant(box, LocationRule("image", "normal"), aspect, 1.0, None))


def clearance(box: Box, location: str, aspect: float) -> float:
    """How far (in frame heights) the box centre lies inside its quarter; negative where the label would be wrong."""
    cx, cy = center(box)
    dx = aspect / 2 - cx if location.startswith("left") else cx - aspect / 2
    dy = 0.5 - cy if location.endswith("top") else cy - 0.5
    return min(dx, dy)
