"""From the bytes of a request to a frame: bounded before it is decoded, turned as its EXIF says, never on disk."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery_r1._util.images import MAX_ASPECT
from surgery_r1.geometry import clip, is_box
from surgery_r1.serve.refusal import Refusal

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded; other formats have decoders that few people read.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.I)


def from_base64(text: str) -> bytes:
    """The bytes of an image that came as base64, with or without a data URL before it.

    Raises:
        Refusal: 422 where it is neither.
    """
    start = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, "image_torn", "image is no base64", "send the bytes of a PNG or JPEG file so") from None


def read_frame(data: bytes, most_pixels: int) -> Image:
    """An image as RGB, turned upright as its EXIF orientation says: what a browser shows.

    Args:
        most_pixels: that it may have; told by its header.

    Raises:
        Refusal: 413 for too many pixels, 422 for what cannot be decoded to the end, or is too long for its width.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise Refusal(422, "image_torn", "the image is empty", "send the bytes of a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused here anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size, most_pixels)
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise _too_large("too many pixels", most_pixels) from None
    except UnidentifiedImageError:
        fix = f"send one of {', '.join(FORMATS)}"
        raise Refusal(422, "image_torn", "the image's kind cannot be told", fix) from None
    except Refusal:
        raise
    except Exception as error:
        # Decoders raise errors of many types on torn files: OSError, SyntaxError, struct.error, zlib.error, ...
        what = f"the image cannot be decoded ({type(error).__name__})"
        raise Refusal(422, "image_torn", what, "send the whole file") from None


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise _too_large(f"{width} x {height} pixels", most)
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        what = f"an image of {width} x {height} pixels: one side is more than {MAX_ASPECT} times the other"
        raise Refusal(422, "image_shape", what, "send a frame")


def _too_large(size: str, most: int) -> Refusal:
    return Refusal(413, "image_too_large", f"an image of {size}, more than {most:,}", "make it smaller")


def covered(frame: Image, boxes: Sequence[Sequence[float]]) -> Image:
    """A copy of a frame with boxes (source pixels) painted over in its mean colour; the frame itself without boxes.

    Raises:
        Refusal: 422 for what is no box, or lies outside the frame.
    """
    from PIL import ImageDraw, ImageStat

    if not boxes:
        return frame
    colour = tuple(round(value) for value in ImageStat.Stat(frame).mean)
    copy = frame.copy()
    draw = ImageDraw.Draw(copy)
    for box in boxes:
        inside = clip(box, *frame.size) if is_box(box) else None
        if inside is None or not is_box(inside):
            what = f"cover {[*box]} is no box inside a frame of {frame.width} x {frame.height} pixels"
            raise Refusal(422, "value", what, "give [x1, y1, x2, y2] in source pixels with x2 > x1 and y2 > y1")
        draw.rectangle(inside, fill=colour)
    return copy
