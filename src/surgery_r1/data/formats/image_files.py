"""Whether an image file can be used: whole, of a size that models take, and a PNG or JPEG."""

from __future__ import annotations

import os
from pathlib import Path

from surgery_r1._util.files import open_regular
from surgery_r1._util.images import opened_image
from surgery_r1.errors import SurgeryR1Error

IMAGE_SUFFIXES: frozenset[str] = frozenset({".png", ".jpg", ".jpeg"})
#: Pillow's names of what is read (MPO is a JPEG with a preview behind it, as some cameras write it), with
#: how a whole file ends and how many bytes a camera or a tool may have put behind that.
_ENDS = {"PNG": (b"IEND\xaeB`\x82", 65_536), "JPEG": (b"\xff\xd9", 64), "MPO": (b"\xff\xd9", 65_536)}


def checked_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a PNG or JPEG whose every pixel has been decoded.

    Raises:
        SurgeryR1Error: when it is missing, torn, or of another kind; :class:`surgery_r1._util.images.ImageSizeError`
            when it is of a size that models refuse.
    """
    with opened_image(path) as image:
        kind = str(image.format)
        if kind not in _ENDS:
            raise SurgeryR1Error("neither PNG nor JPEG", where=str(path), fix="convert it, or correct its labels")
        if kind == "PNG":
            # Decoding does not compare the checksums of a PNG's blocks; this does, and leaves the image unusable.
            image.verify()
        if not _ends(path, *_ENDS[kind]):
            # Where only the last bytes are gone, a decoder fills up what is missing and says nothing.
            raise SurgeryR1Error(f"a {kind} without its end", where=str(path), fix="copy it again")
    with opened_image(path) as image:
        image.load()
        return image.size


def _ends(path: Path, end: bytes, behind: int) -> bool:
    with open_regular(path) as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - len(end) - behind))
        return end in handle.read()
