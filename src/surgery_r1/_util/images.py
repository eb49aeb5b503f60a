"""Opening image files: the one place that says which can be used, for checks of data and for models alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from surgery_r1._util.files import open_regular
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels of the largest image that is decoded (Pillow's own limit: a 9,459 x 9,459 frame). A file of a few kilobytes
#: can claim many more and fill the memory.
MAX_PIXELS = 89_478_485
#: Image processors of the Qwen family refuse an image that is longer than so many times its width.
MAX_ASPECT = 200


class ImageSizeError(SurgeryR1Error):
    """The image is whole, for all that its header says, but of a size that cannot be used."""


@contextmanager
def opened_image(path: Path) -> Iterator[Image]:
    """An image file whose header has been read and whose size is within limits; pixels are decoded when asked for.

    Raises:
        SurgeryR1Error: when it is missing, no regular file, too large, too long, or cannot be decoded (also from within
            the block); :class:`ImageSizeError` where its size is what is wrong.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _opened(path) as handle, Image.open(handle) as image:
            _check_size(path, *image.size)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Before the size is known here; an error where Pillow warns, if warnings are errors.
        raise _too_large(path, (re.findall(r"\d+", str(error)) or ["too many"])[0]) from None
    except UnidentifiedImageError:
        raise SurgeryR1Error(
            "the image cannot be decoded: its kind cannot be told", where=str(path), fix="copy it again"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow raises SyntaxError or ValueError for some torn headers.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SurgeryR1Error(f"the image cannot be decoded: {reason}", where=str(path), fix="copy it again") from None


def _opened(path: Path) -> BufferedReader:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise SurgeryR1Error("no such image", where=str(path), fix="check the path; a dataset takes --images") from None
    except OSError as error:
        what = f"the image cannot be opened: {error.strerror or error}"
        raise SurgeryR1Error(what, where=str(path), fix="name a PNG or JPEG file that can be read") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ImageSizeError(f"an image of {width} x {height} pixels", where=str(path), fix="copy it again")
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageSizeError(
            f"an image of {width} x {height} pixels, more than {MAX_ASPECT} times as long as wide",
            where=str(path),
            fix="cut it: image processors refuse it",
        )


def _too_large(path: Path, size: str) -> ImageSizeError:
    what = f"an image of {size} pixels, more than {MAX_PIXELS:,} in all"
    return ImageSizeError(what, where=str(path), fix="resize it, with its boxes")
