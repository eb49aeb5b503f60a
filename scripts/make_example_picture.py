"""The picture of the README: a frame, a question, and what a model replied, with the true and the predicted box.

    python scripts/make_example_picture.py demo/dataset demo/rft --out docs/example.png

Of the val questions it takes the first about a tool's place whose reply is coherent, so it shows a success: the report
shows every failure.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import surgery_r1
from surgery_r1.codec import Prediction
from surgery_r1.matching import match
from surgery_r1.report.drawing import PREDICTED_COLOUR, TRUE_COLOUR, draw_boxes

INK, PAPER, GREY = "#0b0f14", "#f7f8fa", "#57606a"


def panel(lines: list[tuple[str, str, str]], width: int, height: int) -> Image.Image:
    """Headings and texts one below the other, as ``(heading, text, colour)``."""
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(20), ImageFont.load_default(26)
    y = 36
    for heading, text, colour in lines:
        draw.text((32, y), heading.upper(), fill=GREY, font=small)
        y += 30
        for line in textwrap.wrap(text, 38, break_on_hyphens=False):
            draw.text((32, y), line, fill=colour, font=large)
            y += 36
        y += 30
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = surgery_r1.open_dataset(arguments.dataset)
    model = surgery_r1.load(arguments.model)
    for sample in (s for s in dataset.split("val") if s.kind == "location"):
        reply = model.ask(dataset.image_path(sample), sample.question)
        found = match(Prediction(reply.rationale, reply.answer, reply.box_px), sample.accepted)
        if found.joint_at_iou50 and reply.rationale:
            break
    else:
        raise SystemExit("no coherent reply: train the model longer")
    with Image.open(dataset.image_path(sample)) as frame:
        left = draw_boxes(
            frame.convert("RGB"), sample.box_px, reply.box_px, true_label="true box", predicted_label="predicted box"
        )
    box = ", ".join(f"{value:.0f}" for value in reply.box_px or ())
    right = panel(
        [
            ("question", reply.question, INK),
            ("rationale", reply.rationale or "", INK),
            ("answer", f"{reply.answer} (true: {sample.answer})", INK),
            ("box", f"[{box}] in pixels, IoU {found.iou:.2f}", PREDICTED_COLOUR),
            ("true box", f"[{', '.join(f'{value:.0f}' for value in sample.box_px)}]", TRUE_COLOUR),
        ],
        620,
        left.height,
    )
    picture = Image.new("RGB", (left.width + right.width, left.height), PAPER)
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width, 0))
    picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
    picture.quantize(192).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {sample.id}")


if __name__ == "__main__":
    main()
