"""Whether an image file can be used: whole, of a size that models take, and a PNG or JPEG."""

from __future__ import annotations

import os
from pathlib import Path

from surgery_r1._util.files import open_regular
from surgery_r1._util.images import opened_image
from surgery_r1.errors import SurgeryR1Error

IMAGE_SUFFIXES: frozenset[str] = frozenset({".png", ".jpg", ".jpeg"})
#: Names that Pillow has for these; MPO is a JPEG with a preview behind it, as some cameras write it.
_KINDS = ("PNG", "JPEG", "MPO")

#: Cameras pad a JPEG behind its end marker.
_JPEG_END, _JPEG_PADDING = b"\xff\xd9", 64


def checked_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a PNG or JPEG whose every pixel has been decoded.

    Raises:
        SurgeryR1Error: when it is missing, torn, or of another kind; :class:`surgery_r1._util.images.ImageSizeError`
            when it is of a size that models refuse.
    """
    with opened_image(path) as image:
        kind = image.format
        if kind not in _KINDS:
            raise SurgeryR1Error("neither PNG nor JPEG", where=str(path), fix="convert it, or correct its labels")
        if kind == "PNG":
            # Decoding does not compare the checksums of a PNG's blocks; this does, and leaves the image unusable.
            image.verify()
        elif not _ends(path):
            # Where only the last bytes are gone, a decoder fills up what is missing and says nothing.
            raise SurgeryR1Error("a JPEG without its end", where=str(path), fix="copy it again")
    with opened_image(path) as image:
        image.load()
        return image.size


def _ends(path: Path) -> bool:
    with open_regular(path) as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - _JPEG_PADDING))
        return _JPEG_END in handle.read()
