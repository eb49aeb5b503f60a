"""True and predicted boxes drawn on a frame, with labels that stay legible on small frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery_r1.geometry import Box, clip, is_box, scale

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

#: Colours as in the report: true boxes green and solid, predicted boxes orange and dashed.
TRUE_COLOUR = "#22c55e"
PREDICTED_COLOUR = "#ff9f1c"

_INK = "#0b0f14"
_SHORTEST_WIDTH = 900
_LONGEST_LABEL = 60


def draw_boxes(
    image: Image,
    true_px: Sequence[float] | None = None,
    predicted_px: Sequence[float] | None = None,
    *,
    true_label: str | None = None,
    predicted_label: str | None = None,
    caption: str | None = None,
) -> Image:
    """A copy of the frame with both boxes; small frames are enlarged by a whole factor to 900 pixels or more.

    A box is cut to the frame. A label without a box that can be seen stands in the lower left corner, so that an
    answer whose box is missing or outside the frame is not lost.

    Args:
        true_px, predicted_px: xyxy in pixels of ``image``, or None.
        true_label, predicted_label: such as an answer; cut to 60 characters.
        caption: a line beneath the picture, such as the question.
    """
    from PIL import Image as images
    from PIL import ImageDraw, ImageFont

    factor = max(1, -(-_SHORTEST_WIDTH // image.width))
    width, height = image.width * factor, image.height * factor
    picture = image.convert("RGB")
    if factor > 1:
        picture = picture.resize((width, height), images.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    stroke = max(3, width // 280)
    font = ImageFont.load_default(max(18, width // 46))
    taken: list[Box] = []
    for box, label, colour, dashed in (
        (true_px, true_label, TRUE_COLOUR, False),
        (predicted_px, predicted_label, PREDICTED_COLOUR, True),
    ):
        seen = _visible(box, factor, width, height)
        if seen is not None:
            _outline(draw, seen, colour, stroke, dashed)
        if label:
            taken.append(_label(picture, label[:_LONGEST_LABEL], seen, colour, font, taken))
    return picture if caption is None else _captioned(picture, caption, font)


def _visible(box: Sequence[float] | None, factor: float, width: int, height: int) -> Box | None:
    if box is None or not is_box(box):
        return None
    cut = clip(scale(box, factor, factor), width - 1, height - 1)
    return cut if is_box(cut) else None


def _outline(draw: ImageDraw, box: Box, colour: str, stroke: int, dashed: bool) -> None:
    # A dark line beneath keeps either colour visible on bright tissue.
    draw.rectangle(box, outline=_INK, width=stroke + 2)
    if not dashed:
        draw.rectangle(box, outline=colour, width=stroke)
        return
    x1, y1, x2, y2 = box
    dash = stroke * 5
    for start, stop, across in ((x1, x2, y1), (x1, x2, y2 - stroke + 1)):
        for at in range(int(start), int(stop), dash * 2):
            draw.rectangle((at, across, min(at + dash, stop), across + stroke - 1), fill=colour)
    for start, stop, across in ((y1, y2, x1), (y1, y2, x2 - stroke + 1)):
        for at in range(int(start), int(stop), dash * 2):
            draw.rectangle((across, at, across + stroke - 1, min(at + dash, stop)), fill=colour)


def _label(picture: Image, text: str, box: Box | None, colour: str, font: Font, taken: Sequence[Box]) -> Box:
    """Write a label at the first place near its box that is inside the frame and free; the place it took."""
    from PIL import ImageDraw

    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = 5
    w, h = right - left + 2 * pad, bottom - top + 2 * pad
    corner = (0.0, float(height - h))
    if box is None:
        places = [corner, (0.0, height - 2 * h)]
    else:
        x1, y1, x2, y2 = box
        places = [(x1, y1 - h), (x1, y2), (x2 - w, y1 - h), (x2 - w, y2), (x1, y1), (x1, y2 - h), corner]
    spots = [(min(max(x, 0.0), max(width - w, 0.0)), y) for x, y in places]
    inside = [(x, y) for x, y in spots if 0 <= y <= height - h] or [corner]
    x, y = next(
        (spot for spot in inside if not any(_touch((*spot, spot[0] + w, spot[1] + h), t) for t in taken)), inside[0]
    )
    draw.rectangle((x, y, x + w, y + h), fill=colour, outline=_INK)
    draw.text((x + pad - left, y + pad - top), text, fill=_INK, font=font)
    return x, y, x + w, y + h


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _captioned(picture: Image, caption: str, font: Font) -> Image:
    from PIL import Image as images
    from PIL import ImageDraw

    line = int(font.getbbox("Ag")[3]) + 10
    result = images.new("RGB", (picture.width, picture.height + line + 6), _INK)
    result.paste(picture, (0, 0))
    ImageDraw.Draw(result).text((8, picture.height + 4), caption, fill="#f2f4f7", font=font)
    return result
