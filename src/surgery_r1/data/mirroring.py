"""A frame in a mirror: its image, its boxes, and the places that its labels and questions name (ours).

To a model that knows its frames by heart a mirrored one is new, and it costs nobody a label: what is where follows,
under each of the four location rules (:data:`surgery_r1.geometry.LOCATION_RULES`), but for a box whose centre lies on
the very line that divides places. Reasoning does not follow: nobody wrote one about the mirrored frame. Rewards need
none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from surgery_r1 import vocab
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import FLIPS, flip_box
from surgery_r1.records import Frame, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

_PLACE = re.compile(r"\b(left|right)([ _-])(top|bottom)\b", re.I)
#: Words that a mirror changes, wherever they stand: what is left of them beside places cannot be told anew.
_SIDE = re.compile(r"(?<![a-z])(left|right|top|bottom|upper|lower|above|below)(?![a-z])", re.I)
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def flip_places(text: str, flip: str) -> str:
    """``text`` with the name of every place replaced by that of the mirrored place.

    >>> flip_places("Which tool is in the left-top?", "horizontal")
    'Which tool is in the right-top?'
    >>> flip_places("left bottom", "both")
    'right top'
    """
    across, over = FLIPS[flip]

    def mirrored(place: re.Match[str]) -> str:
        x, between, y = place.groups()
        return (_opposite(x) if across else x) + between + (_opposite(y) if over else y)

    return _PLACE.sub(mirrored, text)


def _opposite(word: str) -> str:
    other = _OPPOSITE[word.lower()]
    return other.capitalize() if word[0].isupper() else other


def flip_sample(sample: Sample, flip: str) -> Sample:
    """The same question about the mirrored frame.

    Raises:
        SurgeryR1Error: when it speaks of sides otherwise than :data:`surgery_r1.vocab.LOCATIONS` do.
    """
    if flip == "none":
        return sample
    answers = [answer for answer, _ in sample.accepted]
    places = {"location": answers, "tool": [sample.subject]}.get(sample.kind, [])
    for text in (sample.question, sample.subject, *answers):
        if _SIDE.search(_PLACE.sub("", text)) or (text in places and not _PLACE.fullmatch(text)):
            raise SurgeryR1Error(
                f"{text!r} cannot be flipped: it names a side in other words than {', '.join(vocab.LOCATIONS)}",
                where=sample.id,
                fix="leave flips out of the config, or build the dataset with these four as classes",
            )
    width, height = sample.width, sample.height
    return replace(
        sample,
        question=flip_places(sample.question, flip),
        subject=flip_places(sample.subject, flip),
        answer=flip_places(sample.answer, flip),
        box_px=sample.box_px and flip_box(sample.box_px, flip, width, height),
        answers_accepted=tuple(flip_places(answer, flip) for answer in sample.answers_accepted),
        boxes_accepted=tuple(box and flip_box(box, flip, width, height) for box in sample.boxes_accepted),
    )


def flip_frame(frame: Frame, flip: str) -> Frame:
    """The annotations of the mirrored frame."""
    if flip == "none":
        return frame
    objects = tuple(
        replace(
            item,
            location=item.location and flip_places(item.location, flip),
            box_px=flip_box(item.box_px, flip, frame.width, frame.height),
        )
        for item in frame.objects
    )
    return replace(frame, objects=objects)


def flip_image(image: Image, flip: str) -> Image:
    """The mirrored image; ``image`` itself for ``none``."""
    from PIL import ImageOps

    across, over = FLIPS[flip]
    if across:
        image = ImageOps.mirror(image)
    return ImageOps.flip(image) if over else image
