"""What a drawn scene is made of. Lengths are in units of the frame height unless a name ends in ``_px``.

The frame spans x in [0, W / H] and y in [0, 1], y downward, so that one drawing works at any size.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class DrawnObject:
    """One annotated thing of a frame; ``box_px`` is 0-based xyxy with x2 > x1 and y2 > y1, inside the frame.

    A tool's box is tight around shaft, wrist and jaws as far as the camera could see them (cue excluded, parts hidden
    under another tool included). The kidney's box is tight around the organ's outline, clipped to the frame.
    """

    name: str
    state: str | None
    location: str | None
    box_px: tuple[float, float, float, float]
    tip_px: tuple[float, float] | None


@dataclass(frozen=True)
class DrawnScene:
    """A picture (RGB) and everything in it that can be asked about."""

    image: Image.Image
    objects: tuple[DrawnObject, ...]


@dataclass(frozen=True)
class ToolPose:
    """Where a tool is: shaft from ``entry`` (on the frame border) to ``tip``; ``bend`` turns the jaws (radians)."""

    name: str
    state: str
    location: str
    entry: tuple[float, float]
    tip: tuple[float, float]
    bend: float
    scale: float
    look: int  # seeds the small differences between two tools of one name (tint, mirrored blades, cue jitter)


@dataclass(frozen=True)
class KidneyPose:
    """A bean: centre, half axes, turn (radians) and how strongly it is bent (0..0.5)."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    bend: float


@dataclass(frozen=True)
class FramePlan:
    """All that one frame shows. ``drift`` shifts the tissue (frame heights); ``grain`` seeds the sensor noise."""

    tools: tuple[ToolPose, ...]
    kidney: KidneyPose
    drift: tuple[float, float] = (0.0, 0.0)
    grain: int = 0


def seeded(*parts: object) -> random.Random:
    """A generator that depends on ``parts`` alone: the same in every process and whatever was drawn before.

    >>> seeded("a", 1).random() == seeded("a", 1).random() != seeded("a", 2).random()
    True
    """
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
