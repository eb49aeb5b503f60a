"""Size and wholeness of an image file, read from its header and its end without decoding it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

IMAGE_SUFFIXES: frozenset[str] = frozenset({".png", ".jpg", ".jpeg"})

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
#: Cameras pad a JPEG behind its end marker; a marker cannot occur inside the coded data itself.
_JPEG_PADDING = 64


class TornImageError(ValueError):
    """The file is not a whole PNG or JPEG; the message says why."""


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a PNG or JPEG, found by walking its blocks (no pixel is decoded).

    Raises:
        FileNotFoundError: when there is no such file.
        TornImageError: when the header is damaged or the file ends before its end marker.
    """
    with path.open("rb", buffering=0) as handle:
        length = os.fstat(handle.fileno()).st_size
        head = handle.read(33)
        if head.startswith(_PNG_SIGNATURE):
            size = _png(handle.fileno(), head, length)
        elif head.startswith(_JPEG_START):
            size = _jpeg(handle.fileno(), length)
        elif not head:
            raise TornImageError("empty file")
        else:
            raise TornImageError("neither PNG nor JPEG")
    if min(size) < 1:
        raise TornImageError(f"size {size[0]}x{size[1]} in its header")
    return size


def _png(fd: int, head: bytes, length: int) -> tuple[int, int]:
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise TornImageError("PNG header cut short")
    offset, seen_data = 33, False
    while offset + 12 <= length:
        block = os.pread(fd, 8, offset)
        if len(block) < 8:
            break
        size, kind = struct.unpack(">I4s", block)
        if kind == b"IEND":
            if not seen_data:
                raise TornImageError("PNG without pixel data")
            width, height = struct.unpack(">II", head[16:24])
            return width, height
        if not kind.isalpha():
            raise TornImageError(f"PNG block damaged at byte {offset}")
        seen_data |= kind == b"IDAT"
        offset += 12 + size
    raise TornImageError(f"PNG ends after {length} bytes, before its end marker")


def _jpeg(fd: int, length: int) -> tuple[int, int]:
    if _JPEG_END not in os.pread(fd, _JPEG_PADDING, max(0, length - _JPEG_PADDING)):
        raise TornImageError(f"JPEG ends after {length} bytes, before its end marker")
    offset = 2
    while offset + 4 <= length:
        block = os.pread(fd, 9, offset)
        if len(block) < 4 or block[0] != 0xFF:
            break
        marker = block[1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a body
            offset += 1 if marker == 0xFF else 2
            continue
        # SOF0..SOF15 hold the size; C4, C8 and CC are tables that share the range.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(block) == 9:
            height, width = struct.unpack(">HH", block[5:9])
            return width, height
        if marker == 0xDA:
            break
        offset += 2 + struct.unpack(">H", block[2:4])[0]
    raise TornImageError("JPEG header damaged: no size found")
