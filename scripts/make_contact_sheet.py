"""Draw the contact sheet of the docs: frames of both domains, some with their boxes.

python scripts/make_contact_sheet.py docs/scenes.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from surgery_r1.synthetic.placement import plan_sequence
from surgery_r1.synthetic.render import objects_of, render_scene
from surgery_r1.synthetic.statistics import sequence_records
from surgery_r1.synthetic.write import style_of

#: (domain, sequence, frame, boxes): a look at every kind of thing.
FRAMES = (
    *((18, 2, 30, False), (18, 3, 70, False), (18, 4, 100, False), (18, 7, 60, True)),
    *((18, 9, 40, False), (18, 14, 75, True), (18, 15, 20, False), (18, 1, 110, False)),
    *((18, 5, 50, True), (18, 16, 90, False), (17, 1, 5, False), (17, 9, 8, True)),
)
SIZE, COLUMNS, GAP = (320, 256), 4, 4


def draw_one(domain: int, sequence: int, frame: int, boxes: bool) -> Image.Image:
    """One frame of the set of seed 0, at SIZE."""
    style = style_of(domain, sequence, 0)
    rows = sequence_records(domain)[sequence]
    plan = plan_sequence(rows, SIZE[0] / SIZE[1], style, domain, 0, sequence)[frame % len(rows)]
    image = render_scene(plan, style, SIZE)
    if boxes:
        draw = ImageDraw.Draw(image)
        for obj in objects_of(plan, style, SIZE):
            colour = (255, 221, 64) if obj.tip_px is None else (64, 255, 128)
            draw.rectangle(obj.box_px, outline=colour, width=2)
            text = obj.name
            x = min(obj.box_px[0] + 4, SIZE[0] - 4 - draw.textlength(text))
            draw.text((max(2, x), obj.box_px[1] + 3), text, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rows = -(-len(FRAMES) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIZE[0] + GAP) - GAP, rows * (SIZE[1] + GAP) - GAP), (24, 24, 24))
    for i, spec in enumerate(FRAMES):
        sheet.paste(draw_one(*spec), (i % COLUMNS * (SIZE[0] + GAP), i // COLUMNS * (SIZE[1] + GAP)))
    sheet.save(out, quality=84)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
