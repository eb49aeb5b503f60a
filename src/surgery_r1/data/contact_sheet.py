"""Contact sheet: frames with their annotated boxes drawn, so that a person sees whether labels and images match."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1._util.files import atomic_write
from surgery_r1._util.images import opened_image
from surgery_r1.data.formats.source import FolderContent
from surgery_r1.geometry import scale
from surgery_r1.records import Frame

_COLOURS = ("#ffd23f", "#3bceac", "#ee4266", "#4ea8de", "#f79d65", "#c77dff", "#90be6d", "#f0f0f0")
_ORGAN_COLOUR = "#ffffff"
_MARGIN, _LINE = 6, 13


def write_sheet(content: FolderContent, path: Path, *, cells: int = 24, width: int = 320) -> int:
    """Draw up to ``cells`` frames, spread over all sequences, each ``width`` pixels wide, into one picture.

    Returns:
        The number of frames drawn.

    Raises:
        SurgeryR1Error: when the picture cannot be written.
    """
    from PIL import Image

    frames = _spread(content, cells)
    tiles = [_tile(content.image_root, frame, width) for frame in frames]
    columns = min(4, max(1, len(tiles)))
    height = max((tile.height for tile in tiles), default=_LINE)
    rows = -(-len(tiles) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + _MARGIN) + _MARGIN, max(1, rows) * (height + _MARGIN) + _MARGIN),
        "#202020",
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (_MARGIN + column * (width + _MARGIN), _MARGIN + row * (height + _MARGIN)))
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    with atomic_write(path, "wb") as handle:
        sheet.save(handle, kind)
    return len(tiles)


def _spread(content: FolderContent, cells: int) -> list[Frame]:
    """Frames at even distances, the same number from each sequence as far as they go."""
    sequences: dict[str, list[Frame]] = defaultdict(list)
    for frame_id, frame in content.frames.items():
        sequences[frame_id.rpartition("/")[0]].append(frame)
    if not sequences:
        return []
    chosen: list[Frame] = []
    for number, frames in enumerate(sequences.values()):
        share = cells * (number + 1) // len(sequences) - cells * number // len(sequences)
        share = min(share, len(frames))
        chosen += [frames[(2 * i + 1) * len(frames) // (2 * share)] for i in range(share)]
    return chosen


def _tile(root: Path, frame: Frame, width: int):
    """One frame with its boxes and, below it, a line for each object."""
    from PIL import Image, ImageDraw, ImageFont

    height = round(frame.height * width / frame.width)
    lines = [(frame.frame_id, "#ffffff")]
    tile = Image.new("RGB", (width, height + _LINE * 7), "#101010")
    with opened_image(root / frame.image) as image:
        image.draft("RGB", (width, height))
        tile.paste(image.convert("RGB").resize((width, height)), (0, 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(size=10)
    for seen in frame.objects:
        box = scale(seen.box_px, width / frame.width, height / frame.height)
        short, colour = _short(seen.name), _colour(seen.name)
        draw.rectangle(box, outline=colour, width=2)
        draw.text((box[0] + 4, box[1] + 2), short, fill=colour, font=font)
        lines.append((f"{short}  " + ", ".join(filter(None, (seen.name, seen.state, seen.location))), colour))
    for number, (text, colour) in enumerate(lines[:7]):
        draw.text((3, height + number * _LINE), text, fill=colour, font=font)
    return tile


def _colour(name: str) -> str:
    if name == vocab.ORGAN:
        return _ORGAN_COLOUR
    return _COLOURS[vocab.TOOLS.index(name) % len(_COLOURS)] if name in vocab.TOOLS else _COLOURS[-1]


def _short(name: str) -> str:
    parts = name.split("_")
    return "".join(part[0] for part in parts) if len(parts) > 1 else name[:3]
