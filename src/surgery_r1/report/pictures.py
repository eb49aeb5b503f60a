"""Frames as small JPEGs inside the page: each frame once, however many questions were asked about it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgery_r1._util.images import opened_image
from surgery_r1.errors import SurgeryR1Error

#: Bytes of base64 that all pictures of a page may take together.
BUDGET = 9_000_000

#: Width in pixels and JPEG quality, best first; the first that lets every frame in is used, else the last.
SIZES: tuple[tuple[int, int], ...] = ((320, 72), (320, 55), (256, 50), (224, 45))


@dataclass(slots=True)
class Pictures:
    """Data URIs by frame id, and what was not taken in.

    Attributes:
        left_out: frames beyond the budget or the largest number.
        unreadable: frames whose image could not be read.
        width: pixels.
    """

    uris: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    unreadable: int = 0
    width: int = 0


def thumbnails(
    frames: Sequence[tuple[str, Path]],
    most: int | None = None,
    budget: int = BUDGET,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Pictures:
    """Thumbnails of ``(frame id, path)`` in the order given, until the budget is used up.

    Args:
        most: largest number of pictures; None for as many as the budget allows.
        budget: bytes of base64.
        sizes: to choose from, as :data:`SIZES`.
    """
    chosen = list(frames if most is None else frames[:most])
    width, quality = _size(chosen, budget, sizes)
    result = Pictures(left_out=len(frames) - len(chosen), width=width)
    used = 0
    for number, (frame_id, path) in enumerate(chosen):
        uri = _uri(path, width, quality)
        if uri is None:
            result.unreadable += 1
        elif used + len(uri) > budget:
            result.left_out += len(chosen) - number
            break
        else:
            result.uris[frame_id] = uri
            used += len(uri)
    return result


def _size(frames: Sequence[tuple[str, Path]], budget: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The best size at which a dozen frames, taken from all over, foretell that every frame fits."""
    some = frames[:: max(1, len(frames) // 12)]
    for width, quality in sizes:
        lengths = [len(uri) for _, path in some if (uri := _uri(path, width, quality)) is not None]
        if not lengths or sum(lengths) / len(lengths) * len(frames) * 1.05 <= budget:
            return width, quality
    return sizes[-1]


def _uri(path: Path, width: int, quality: int) -> str | None:
    from PIL import Image

    try:
        with opened_image(path) as image:
            image.draft("RGB", (width, width * image.height // image.width))
            picture = image.convert("RGB")
    except SurgeryR1Error:
        return None
    if picture.width > width:
        picture = picture.resize(
            (width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS
        )
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
