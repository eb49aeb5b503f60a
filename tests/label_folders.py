"""Small EndoVis-VQLA folders for tests, in every layout that is found in the wild."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

SIZE = (160, 128)

ORGAN = "What organ is being operated?|kidney|11, 11, 150, 120"
STATE = "What is the state of bipolar_forceps?|Idle|21, 21, 61, 51"
LOCATION = "Where is bipolar_forceps located?|left-top|21, 21, 61, 51"
STATE_2 = "What is the state of suction?|Suction|101, 81, 141, 121"
LOCATION_2 = "Where is suction located?|right-bottom|101, 81, 141, 121"
LINES = (ORGAN, STATE, LOCATION)
LINES_17 = (STATE, LOCATION)


@cache
def image_bytes(kind: str, colour: int = 90, size: tuple[int, int] = SIZE) -> bytes:
    """A whole PNG or JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 40, 40)).save(buffer, {"png": "PNG", "jpg": "JPEG"}[kind])
    return buffer.getvalue()


def put_image(path: Path, colour: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(path.suffix[1:], colour))
    return path


def put_labels(path: Path, lines: Sequence[str] = LINES, end: str = "\n", start: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start + "".join(line + end for line in lines).encode())
    return path


def put_frame(
    root: Path, sequence: int = 2, frame: int = 3, lines: Sequence[str] = LINES, label: str = "vqla/label/{}_QA.txt"
) -> Path:
    """A frame of EndoVis-18 with its labels; the path of the label file."""
    name = f"frame{frame:03d}"
    put_image(root / f"seq_{sequence}" / "left_frames" / f"{name}.png", colour=(sequence * 16 + frame) % 256)
    return put_labels(root / f"seq_{sequence}" / label.format(name), lines)


def put_frame_17(root: Path, sequence: int = 1, frame: int = 15, lines: Sequence[str] = LINES_17) -> Path:
    """A frame of EndoVis-17 with its labels; the path of the label file."""
    name = f"seq{sequence}_frame{frame:03d}"
    put_image(root / "left_frames" / f"{name}.jpg", colour=200)
    return put_labels(root / "vqla" / "label" / f"{name}_QA.txt", lines)


def small_set(root: Path) -> Path:
    """Two frames each of a train, a dev and a val sequence."""
    for sequence in (2, 4, 1):
        for frame in (3, 10):
            put_frame(root, sequence, frame, (*LINES, STATE_2, LOCATION_2))
    return root


def faulty(root: Path) -> Path:
    """The small set with four errors; the path of the label file that has three of them."""
    small_set(root)
    label = put_frame(root, lines=(*LINES, STATE, "broken", "What is the state of suction?|Asleep|1, 1, 9, 9"))
    (root / "seq_1/left_frames/frame003.png").unlink()
    return label
