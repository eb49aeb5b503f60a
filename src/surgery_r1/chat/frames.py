"""Frames as chat servers take them."""

from __future__ import annotations

import base64

PNG = b"\x89PNG"


def data_url(data: bytes) -> str:
    """The bytes of a PNG or JPEG file as a data URL.

    >>> data_url(b"\\x89PNG...")
    'data:image/png;base64,iVBORy4uLg=='
    """
    kind = "png" if data.startswith(PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
