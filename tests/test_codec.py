"""The codec: what it renders it reads back, it never raises on text, and every problem has a reply that shows it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery_r1 import codec, prompts
from surgery_r1.codec import PROBLEMS, View, parse, read_reply, render, to_model, to_px

# Machines are shared: no example is timed, and every run tries the same ones.
UNTIMED = settings(deadline=None, derandomize=True)

SPACES = sorted(codec.BOX_SPACES)
SIZES = [(1280, 1024, 1120, 896), (1280, 1024, 700, 560), (320, 256, 112, 112), (160, 128, 168, 140), (97, 53, 56, 28)]
VIEWS = [View(*size) for size in SIZES]

views = st.builds(View, *[st.integers(16, 4000) for _ in range(4)])
good = "<think>why</think><answer>kidney</answer><box>[1, 2, 3, 4]</box>"


@st.composite
def view_and_box(draw):
    """A view and a box inside its frame, at least a thousandth of a pixel wide."""
    view = draw(st.one_of(st.sampled_from(VIEWS), views))
    x = sorted(draw(st.tuples(st.floats(0, view.width), st.floats(0, view.width))))
    y = sorted(draw(st.tuples(st.floats(0, view.height), st.floats(0, view.height))))
    return view, (x[0], y[0], max(x[1], x[0] + 1e-3), max(y[1], y[0] + 1e-3))


# --- boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@given(view_and_box())
@UNTIMED
def test_round_trip_within_half_a_unit(space, drawn):
    view, box = drawn
    ux, uy = view.units(space)
    back = to_px(to_model(box, space, view), space, view)
    for axis, unit in ((0, view.width / ux), (1, view.height / uy)):
        low, high = axis, axis + 2
        # A box thinner than a unit is widened to one, so one of its corners may be off by up to a unit.
        tolerance = 0.5 if box[high] - box[low] >= unit else 1.0
        for corner in (low, high):
            assert abs(back[corner] - box[corner]) <= tolerance * unit + 1e-3 + 1e-9 * view.width


@pytest.mark.parametrize("space", SPACES)
@given(view_and_box())
@UNTIMED
def test_model_boxes_are_boxes_inside_the_frame(space, drawn):
    view, box = drawn
    ux, uy = view.units(space)
    x1, y1, x2, y2 = to_model(box, space, view)
    assert 0 <= x1 < x2 <= ux and 0 <= y1 < y2 <= uy


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_whole_frame_is_exact(space, view):
    whole = (0.0, 0.0, float(view.width), float(view.height))
    assert to_px(to_model(whole, space, view), space, view) == pytest.approx(whole)


@pytest.mark.parametrize("space", SPACES)
def test_boxes_beyond_the_frame_are_clipped_when_written_and_kept_when_read(space):
    view = VIEWS[0]
    ux, uy = view.units(space)
    assert to_model((-50, -50, 9999, 9999), space, view) == (0, 0, ux, uy)
    assert to_model((5000, 5000, 6000, 6000), space, view) == (ux - 1, uy - 1, ux, uy)
    assert to_px((0, 0, 2 * ux, 2 * uy), space, view) == (0, 0, 2 * view.width, 2 * view.height)


def test_spaces_differ_and_unknown_ones_are_named():
    view = View(1280, 1024, 1120, 896)
    box = (640.0, 512.0, 1280.0, 1024.0)
    assert to_model(box, "pixels", view) == (560, 448, 1120, 896)
    assert to_model(box, "norm1000", view) == (500, 500, 1000, 1000)
    assert to_model(box, "norm100", view) == (50, 50, 100, 100)
    assert to_model(box, "source", view) == (640, 512, 1280, 1024)
    with pytest.raises(ValueError, match="norm999"):
        view.units("norm999")


@pytest.mark.parametrize("space", SPACES)
def test_read_brings_the_box_to_source_pixels(space):
    view = View(1280, 1024, 1120, 896)
    truth = (128.0, 256.0, 640.0, 512.0)
    reading = read_reply(render("why", "left-top", to_model(truth, space, view)), space, view)
    assert reading.box_px == pytest.approx(truth, abs=7)
    assert (reading.rationale, reading.answer, reading.problems) == ("why", "left-top", ())


# --- render and parse ----------------------------------------------------------------------------------------------

words = st.text(min_size=1, max_size=80).map(str.strip).filter(lambda text: text and codec._TAG.search(text) is None)
corners = st.integers(-9_999_999, 9_999_999)
model_boxes = st.tuples(corners, corners, corners, corners).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@given(st.none() | words, st.none() | words, st.none() | model_boxes)
@UNTIMED
def test_what_is_rendered_is_read_back(reasoning, answer, box):
    if reasoning is None and answer is None and box is None:
        return
    parsed = parse(render(reasoning, answer, box))
    assert (parsed.rationale, parsed.answer, parsed.box_model) == (reasoning, answer, box)
    assert parsed.well_formed(reasoning=reasoning is not None, answer=answer is not None, box=box is not None)


@pytest.mark.parametrize(
    ("reasoning", "answer", "box"),
    [
        ("", "kidney", None),
        (" ", "kidney", None),
        ("I open <box> now", "kidney", None),
        ("see </think>", "kidney", None),
        ("why", "", None),
        ("why", "x" * 201, None),
        ("why", "kidney", (3, 2, 1, 4)),
        ("why", "kidney", (0, 0, 10**8, 10**8)),
        (None, None, None),
    ],
)
def test_what_would_not_read_back_is_not_rendered(reasoning, answer, box):
    with pytest.raises(ValueError, match="cannot render"):
        render(reasoning, answer, box)


#: One reply, at least, for each problem.
SHOWS = {
    "empty": " \n ",
    "no_reasoning": "<answer>kidney</answer><box>[1, 2, 3, 4]</box>",
    "no_answer": "<think>why</think><box>[1, 2, 3, 4]</box>",
    "no_box": "<think>why</think><answer>kidney</answer>",
    "empty_reasoning": good.replace("why", " "),
    "empty_answer": good.replace("kidney", ""),
    "several_reasonings": "<think>or</think>" + good,
    "several_answers": good + "<answer>Idle</answer>",
    "several_boxes": good + "<box>[1, 2, 3, 4]</box>",
    "long_answer": good.replace("kidney", "kidney " * 100),
    "bad_box": good.replace("4]", "nan]"),
    "inverted_box": good.replace("[1, 2, 3, 4]", "[3, 2, 1, 4]"),
    "nested_tags": good.replace("why", "why <box>"),
    "unclosed_tag": good.removesuffix("</box>"),
    "outside_text": "Sure! " + good,
    "wrong_order": "<box>[1, 2, 3, 4]</box><think>why</think><answer>kidney</answer>",
}


def test_every_problem_is_shown():
    assert list(SHOWS) == list(PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_is_found_and_blocks(problem):
    parsed = parse(SHOWS[problem])
    assert problem in parsed.problems
    assert not parsed.well_formed()
    assert list(parsed.problems) == [code for code in PROBLEMS if code in parsed.problems]


def test_a_good_reply_has_no_problem_and_fits_only_its_own_task():
    parsed = parse(good)
    assert parsed.problems == ()
    fits = {
        (task, reasoning)
        for task in ("cot", "visual_qa", "grounding_qa")
        for reasoning in (True, False)
        if parsed.well_formed(**prompts.parts(task, reasoning))
    }
    assert fits == {("cot", True)}


def test_blanks_between_tags_are_allowed():
    assert parse(good.replace("><", ">\n\n<") + "\n").problems == ()


@pytest.mark.parametrize(
    "box",
    [
        "[nan, 0, 1, 1]",
        "[inf, 0, 1, 1]",
        "[-inf, 0, inf, 1]",
        "[1e3, 0, 1e4, 1]",
        "[0x1, 0, 9, 9]",
        "[1_0, 0, 90, 9]",
        "[١, ٢, ٣, ٤]",
        "[１, ２, ３, ４]",
        "[²,0,9,9]",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[[1, 2, 3, 4]]",
        "[1, 2, 3, 4], [1, 2, 3, 4]",
        "1, 2, 3, 4",
        "(1, 2, 3, 4)",
        "[1 2 3 4]",
        "[x1, y1, x2, y2]",
        "[+1, 2, 3, 4]",
        "[1., 2, 3, 4]",
        "[.1, 2, 3, 4]",
        "[12345678, 2, 123456789, 4]",
        "[" + "9" * 400 + ", 0, 1, 1]",
        "[1,\n2, 3, 4]",
        "",
    ],
)
def test_what_is_not_a_plain_box_is_not_taken(box):
    parsed = parse(f"<think>why</think><answer>kidney</answer><box>{box}</box>")
    assert parsed.box_model is None and parsed.problems == ("bad_box",)


@pytest.mark.parametrize(
    "box", ["[1,2,3,4]", "[1, 2, 3, 4]", "[ 1, 2, 3, 4 ]", " [1, 2, 3, 4]\n", "[-1.5, 2.25, 3, 4.0]"]
)
def test_plain_decimals_are_taken(box):
    assert parse(f"<box>{box}</box>").box_model is not None


@pytest.mark.parametrize(
    "text",
    [
        "<answer>kidney</answer><answer>Idle</answer>",
        "<answer>kidney</answer><answer></answer>",
        "<answer>kidney<answer>Idle</answer>",
        "<answer>kidney</box><answer>Idle</answer>",
        "<think><answer>kidney</answer></think><answer>Idle</answer>",
        "<answer>kidney</answer><answer>kidney</answer>",
        "<answer>kidney</answer><answer>",
    ],
)
def test_an_answer_that_opens_twice_is_not_taken(text):
    parsed = parse(text)
    assert parsed.answer is None and "several_answers" in parsed.problems


def test_tags_are_exact():
    for text in (
        "<ANSWER>kidney</ANSWER>",
        "< answer>kidney</answer>",
        "<answer >kidney</answer >",
        "＜answer＞kidney",
    ):
        assert parse(text).answer is None


def test_answers_keep_their_case_and_characters():
    assert parse("<answer> Suction </answer>").answer == "Suction"
    assert parse("<answer>\u200bkidney</answer>").answer == "\u200bkidney"  # a zero-width space is no white space


# --- any text ------------------------------------------------------------------------------------------------------

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>", "<", ">", "/")
SCRAPS = ("[1, 2, 3, 4]", "[", "9" * 30, "kidney", " ", "\n", "nan", "-", "\x00", "\ud800", "é", "١")
pieces = st.sampled_from([*TAGS, *SCRAPS])
any_text = st.one_of(
    st.text(), st.text(st.characters(categories=None)), st.lists(pieces, max_size=30).map("".join), st.just(good)
)


@given(any_text)
@example("\ud800")
@settings(UNTIMED, max_examples=500)
def test_no_text_makes_it_raise_and_what_is_found_was_written(text):
    parsed = parse(text)
    assert set(parsed.problems) <= set(PROBLEMS)
    for part in (parsed.rationale, parsed.answer):
        assert part is None or (part and part in text)
    for part, name in ((parsed.rationale, "think"), (parsed.answer, "answer"), (parsed.box_model, "box")):
        assert part is None or text.count(f"<{name}>") == 1
    if parsed.problems == ():
        assert parsed.well_formed()
    for view in VIEWS:
        reading = read_reply(text, "norm100", view)
        assert (reading.box_px is None) == (parsed.box_model is None)


MEGABYTE = {
    "opening tags": "<think>" * 150_000,
    "closing tags": "</think>" * 125_000,
    "pairs": "<answer>a</answer>" * 55_000,
    "mixed tags": "<think><answer></think><box>" * 36_000,
    "brackets": "<" * 1_000_000,
    "almost tags": "<think" * 170_000,
    "digits": "<box>[" + "9" * 1_000_000 + "]</box>",
    "commas": "<box>[" + "1, " * 330_000 + "]</box>",
    "blanks": " " * 1_000_000,
    "blanks in tags": "<answer>" + " " * 1_000_000 + "</answer>",
    "box opens": "[" * 1_000_000,
    "reasoning": good.replace("why", "why " * 250_000),
    "after": good + "x" * 1_000_000,
}


@pytest.mark.parametrize("name", MEGABYTE)
def test_a_megabyte_is_read_in_steps_that_grow_with_its_length(name, monkeypatch):
    """Twice the text, at most twice the tags met (the slices between tags are disjoint): counted, never timed."""

    class Counted:
        def __init__(self, pattern):
            self.pattern, self.tags = pattern, 0

        def finditer(self, text):
            for match in self.pattern.finditer(text):
                self.tags += 1
                yield match

    def work(text: str) -> int:
        tags = Counted(codec._TAG)
        monkeypatch.setattr(codec, "_TAG", tags)
        parse(text)
        monkeypatch.setattr(codec, "_TAG", tags.pattern)
        return tags.tags

    text = MEGABYTE[name]
    assert work(text + text) <= 2 * work(text) + 2


def test_the_box_pattern_never_sees_long_text(monkeypatch):
    class Short:
        def __init__(self, pattern):
            self.pattern = pattern

        def fullmatch(self, text):
            assert len(text) <= codec._LONGEST_BOX
            return self.pattern.fullmatch(text)

    monkeypatch.setattr(codec, "_BOX", Short(codec._BOX))
    assert parse(MEGABYTE["digits"]).problems == ("no_reasoning", "no_answer", "bad_box")
    assert parse(good).box_model == (1, 2, 3, 4)


def test_the_longest_plain_box_fits_the_limit():
    number = "-9999999.9999999"
    longest = f"[ {number}, {number}, 9999999.9999999, 9999999.9999999 ]"
    assert parse(f"<box>{longest}</box>").box_model is not None


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(good).answer = "Idle"
