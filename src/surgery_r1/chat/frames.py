"""Frames as chat servers take them: data URLs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from surgery_r1._util.images import opened_image

if TYPE_CHECKING:
    from PIL import Image

_PNG = b"\x89PNG"
_EXIF_ORIENTATION = 0x0112


def data_url(data: bytes) -> str:
    """The bytes of a PNG or JPEG file as a data URL.

    >>> data_url(b"\\x89PNG...")
    'data:image/png;base64,iVBORy4uLg=='
    """
    kind = "png" if data.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def frame_url(path: Path) -> str:
    """An image file, at its own size, as a data URL that every server decodes to the pixels that we see.

    The file's own bytes for RGB PNG and JPEG. Of others (grey, transparent, turned by EXIF, 16 bit, other formats)
    servers make different things: they are sent as the PNG of our reading.

    Raises:
        SurgeryR1Error: when it is missing, too large or too long, or cannot be decoded.
    """
    with opened_image(path) as image:
        image.load()
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        if image.format in ("PNG", "JPEG") and image.mode == "RGB" and "transparency" not in image.info and not turned:
            return data_url(path.read_bytes())
        return image_url(image)


def image_url(image: Image.Image) -> str:
    """An image in memory as the data URL of a PNG: whoever decodes it sees these pixels."""
    encoded = io.BytesIO()
    # Fast rather than small: it goes to a server nearby.
    image.convert("RGB").save(encoded, "PNG", compress_level=1)
    return data_url(encoded.getvalue())
