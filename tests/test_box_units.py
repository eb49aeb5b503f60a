"""Units of predicted boxes: stated ones are read, others are checked against the truth, and nothing is guessed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from prediction_files import HEIGHT, WIDTH, cxcywh, field_lines, questions, read, shares, text_lines, xywh

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import BoxUnits
from surgery_r1.geometry import iou

SAMPLES = questions()


def thousandths(sample, unit=1000):
    return [round(v * unit) for v in shares(sample.box_px, sample)]


def resized(sample, width=1120, height=896):
    return [v * s for v, s in zip(shares(sample.box_px, sample), (width, height) * 2, strict=True)]


#: How a converter gets boxes wrong -> the box, what the error says they look like, and the flags that read them.
WRITTEN = {
    "shares": (lambda s: shares(s.box_px, s), "shares of the frame", "--box-space norm1"),
    "share sizes": (lambda s: xywh(shares(s.box_px, s)), "shares of the frame", "--box-space norm1 --box-format xywh"),
    "yolo": (lambda s: cxcywh(shares(s.box_px, s)), "centre and size", "--box-space norm1 --box-format cxcywh"),
    "thousandths": (thousandths, "thousandths of the frame", "--box-space norm1000"),
    "hundredths": (lambda s: thousandths(s, 100), "hundredths of the frame", "--box-space norm100"),
    "thousandths, corner and size": (
        lambda s: xywh(thousandths(s)),
        "thousandths of the frame (0 to 1000), corner and size",
        "--box-space norm1000 --box-format xywh",
    ),
    "xywh": (lambda s: xywh(s.box_px), "corner and size (xywh)", "--box-format xywh"),
    "cxcywh": (lambda s: cxcywh(s.box_px), "centre and size (cxcywh)", "--box-format cxcywh"),
    "from 1": (lambda s: [v + 1 for v in s.box_px], "counted from 1", "--box-origin 1"),
    "xywh from 1": (
        lambda s: [v + d for v, d in zip(xywh(s.box_px), (1, 1, 0, 0), strict=True)],
        "corner and size (xywh), counted from 1",
        "--box-format xywh --box-origin 1",
    ),
}


@pytest.mark.parametrize("lines", [field_lines, text_lines])
@pytest.mark.parametrize("count", [6, 60])
@pytest.mark.parametrize("name", WRITTEN)
def test_other_units_are_refused_with_the_flag_that_reads_them(tmp_path, name, count, lines):
    box, look, flags = WRITTEN[name]
    if lines is text_lines:
        plain = box
        box = lambda s: [round(v, 5) for v in plain(s)]  # noqa: E731
    samples = SAMPLES[:count]
    with pytest.raises(SurgeryR1Error) as caught:
        read(tmp_path, samples, lines(samples, box))
    assert look in caught.value.what and caught.value.where == str(tmp_path / "predictions.jsonl")
    assert f"give {flags}; if the boxes are right as they stand, give --box-space source" in str(caught.value)
    given = dict(zip(flags.split()[::2], flags.split()[1::2], strict=True))
    units = BoxUnits(
        given.get("--box-space"),
        given.get("--box-format"),
        int(given["--box-origin"]) if "--box-origin" in given else None,
    )
    file = read(tmp_path, samples, lines(samples, box), units=units)
    fits = [iou(file.by_id[s.id].reading.box_px or (), s.box_px or ()) for s in samples]
    assert min(fits) > (0.9 if "hundredths" in name else 0.97)


@pytest.mark.parametrize(
    ("box", "look", "fix"),
    [
        (lambda s: [s.box_px[i] for i in (1, 0, 3, 2)], "x and y swapped", "write every box as x1, y1, x2, y2"),
        (lambda s: [s.box_px[i] for i in (2, 3, 0, 1)], "wrong order (x2, y2, x1, y1)", "write every box as x1, y1"),
        (
            lambda s: [thousandths(s)[i] for i in (1, 0, 3, 2)],
            "thousandths of the frame (0 to 1000), corners with x and y swapped",
            "write every box as x1, y1, x2, y2 and give --box-space norm1000",
        ),
        (resized, "pixels of an image of about 1120 x 896", "write input_width and input_height"),
        (lambda s: resized(s, 640, 512), "pixels of an image of about 640 x 512", "give --box-space pixels"),
    ],
)
def test_what_no_flag_alone_reads_is_refused_too(tmp_path, box, look, fix):
    with pytest.raises(SurgeryR1Error) as caught:
        read(tmp_path, SAMPLES, field_lines(SAMPLES, box))
    assert look in caught.value.what and fix in str(caught.value.fix)


def test_pixels_of_a_resized_image_whose_size_is_in_the_lines(tmp_path):
    lines = field_lines(SAMPLES, resized, input_width=1120, input_height=896)
    with pytest.raises(SurgeryR1Error, match=r"look like pixels of the resized image.*give --box-space pixels;"):
        read(tmp_path, SAMPLES, lines)
    file = read(tmp_path, SAMPLES, lines, units=BoxUnits("pixels"))
    assert all(iou(file.by_id[s.id].reading.box_px or (), s.box_px or ()) > 0.999 for s in SAMPLES)


@pytest.mark.parametrize("name", WRITTEN)
def test_stating_the_units_overrides_the_check(tmp_path, name):
    units = BoxUnits("source", "xyxy", 0)
    file = read(tmp_path, SAMPLES, field_lines(SAMPLES, WRITTEN[name][0]), units=units)
    assert len(file.by_id) == len(SAMPLES)
    stated = {"box_space": "source", "box_format": "xyxy", "box_origin": 0}
    assert read(tmp_path, SAMPLES, field_lines(SAMPLES, WRITTEN[name][0], **stated)).by_id == file.by_id


def test_lines_state_their_units(tmp_path):
    lines = field_lines(SAMPLES, lambda s: cxcywh(shares(s.box_px, s)), box_space="norm1", box_format="cxcywh")
    file = read(tmp_path, SAMPLES, lines)
    assert all(iou(file.by_id[s.id].reading.box_px or (), s.box_px or ()) > 0.999 for s in SAMPLES)
    assert file.meta == {"box_space": "norm1", "box_format": "cxcywh"}
    given = read(tmp_path, SAMPLES, field_lines(SAMPLES, lambda s: s.box_px), units=BoxUnits("source", None, 0))
    assert given.meta == {"box_space": "source", "box_origin": 0}
    with pytest.raises(SurgeryR1Error, match=r"jsonl:1: box_space 'norm1', but 'source' was asked for; drop --box-sp"):
        read(tmp_path, SAMPLES, lines, units=BoxUnits("source"))
    with pytest.raises(SurgeryR1Error, match="box_format 'cxcywh', but 'xyxy' was asked for"):
        read(tmp_path, SAMPLES, lines, units=BoxUnits(format="xyxy"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("box_space", "inches"), ("box_space", ["norm1"]), ("box_format", "x"), ("box_origin", True), ("box_origin", 2)],
)
def test_unknown_units_are_refused(tmp_path, key, value):
    with pytest.raises(SurgeryR1Error, match=rf"jsonl:1: unknown {key} .*use one of"):
        read(tmp_path, SAMPLES, field_lines(SAMPLES, lambda s: s.box_px, **{key: value}))
    with pytest.raises(SurgeryR1Error, match=f"unknown {key.replace('_', ' ')}"):
        BoxUnits(**{key.removeprefix("box_"): value})


def test_shares_counted_from_1_are_refused():
    with pytest.raises(SurgeryR1Error, match="not counted from 1"):
        BoxUnits("norm1", origin=1)


# ------------------------------------------------------------------------ what a bad model writes is never refused


def random_box(draw, width=WIDTH, height=HEIGHT):
    x1, x2 = sorted(draw.sample(range(width), 2))
    y1, y2 = sorted(draw.sample(range(height), 2))
    return [x1, y1, x2, y2]


def around(draw, box, spread):
    return [v + draw.gauss(0, spread) for v in box]


def tiny(sample, draw):
    x, y = cxcywh(sample.box_px)[:2]
    return [x - 5, y - 5, x + 5 + draw.random(), y + 5]


def by_question(sample, draw, guesses):
    return guesses.setdefault(sample.question, random_box(draw))


def grown(sample, factor):
    cx, cy, w, h = cxcywh(sample.box_px)
    return [cx - w / 2 * factor, cy - h / 2 * factor, cx + w / 2 * factor, cy + h / 2 * factor]


#: Models without skill, or with some: (sample, a generator, a dict that lasts for the file) -> box.
MODELS = {
    "random boxes": lambda s, draw, kept: random_box(draw),
    "random numbers": lambda s, draw, kept: [draw.randrange(WIDTH) for _ in range(4)],
    "random numbers up to 1000": lambda s, draw, kept: [draw.randrange(1000) for _ in range(4)],
    "random boxes up to 1000": lambda s, draw, kept: random_box(draw, 1000, 1000),
    "small random boxes": lambda s, draw, kept: random_box(draw, 100, 100),
    "the whole frame": lambda s, draw, kept: [0, 0, s.width, s.height],
    "the whole frame or so": lambda s, draw, kept: [0, 0, s.width - draw.randrange(9), s.height - draw.randrange(9)],
    "one box": lambda s, draw, kept: kept.setdefault("box", random_box(draw)),
    "one box, or nearly": lambda s, draw, kept: around(draw, kept.setdefault("box", random_box(draw)), 3),
    "one pixel": lambda s, draw, kept: [0, 0, 1, 1],
    "half a pixel": lambda s, draw, kept: [0, 0, 0.5, 0.5],
    "a box for each question text": by_question,
    "nearly a box for each question text": lambda s, draw, kept: around(draw, by_question(s, draw, kept), 4),
    "the box of another question": lambda s, draw, kept: list(draw.choice(SAMPLES).box_px),
    "partly outside": lambda s, draw, kept: around(draw, random_box(draw), 300),
    "mirrored": lambda s, draw, kept: [s.width - s.box_px[2], s.box_px[1], s.width - s.box_px[0], s.box_px[3]],
    "a point at the right place": lambda s, draw, kept: tiny(s, draw),
    "too large": lambda s, draw, kept: grown(s, 1.6),
    "too small": lambda s, draw, kept: grown(s, 0.5),
    "never a box": lambda s, draw, kept: sorted(draw.sample(range(WIDTH), 4), reverse=True),
    "nothing": lambda s, draw, kept: None,
    "good": lambda s, draw, kept: around(draw, s.box_px, 8),
    "middling": lambda s, draw, kept: around(draw, s.box_px, 60),
    "right": lambda s, draw, kept: list(s.box_px),
    "one pixel off at one corner": lambda s, draw, kept: [s.box_px[0] + 1, *s.box_px[1:]],
    "right or random": lambda s, draw, kept: list(s.box_px) if draw.random() < 0.5 else random_box(draw),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_never_refused_for_being_bad(tmp_path, name):
    for seed in range(12):
        count = (5, 8, 19, 20, 60)[seed % 5]
        draw, kept = random.Random(f"{name} {seed}"), {}
        samples = questions(count, seed)
        lines = field_lines(samples, lambda s: MODELS[name](s, draw, kept))  # noqa: B023
        assert len(read(tmp_path, samples, lines).by_id) == count


@pytest.mark.parametrize("space", ["norm1000", "norm100", "pixels", "source"])
@pytest.mark.parametrize("size", [(1280, 1024), (160, 128), (1920, 1080)])
def test_what_predict_writes_is_never_refused(tmp_path: Path, space, size):
    """A good model's texts with the space that they are in, and random ones."""
    samples = questions(40, width=size[0], height=size[1])
    unit = {"norm1000": (1000, 1000), "norm100": (100, 100), "pixels": (1120, 896), "source": size}[space]
    more = {"box_space": space, "codec_version": "1", "input_width": 1120, "input_height": 896}

    def good(sample):
        return [round(v * u) for v, u in zip(shares(sample.box_px, sample), unit * 2, strict=True)]

    file = read(tmp_path, samples, text_lines(samples, good, **more))
    assert min(iou(file.by_id[s.id].reading.box_px or (), s.box_px or ()) for s in samples) > 0.8
    draw = random.Random(space)
    for lines in (
        text_lines(samples, lambda s: random_box(draw, *unit), **more),
        text_lines(samples, lambda s: [0, 0, 1, 1], **more),
        [{"id": s.id, "text": "", **more} for s in samples],
    ):
        assert len(read(tmp_path, samples, lines).by_id) == len(samples)


def test_questions_without_a_true_box_leave_nothing_to_compare(tmp_path):
    import dataclasses

    samples = [dataclasses.replace(s, box_px=None) for s in SAMPLES]
    lines = field_lines(samples, lambda s: [1, 2, 3, 4])
    assert len(read(tmp_path, samples, lines).by_id) == len(samples)
