"""Every reasoning is checked, whoever wrote it: planted bad ones are caught by the check that should catch them."""

from __future__ import annotations

from collections import Counter

import pytest

from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.rationales.checks import CHECKS, CheckContext, SourceWords, plain, rejections
from surgery_r1.data.rationales.generate import RationaleGenerator
from surgery_r1.data.rationales.writer import Draft, RationaleRequest
from surgery_r1.data.recipe import ReasoningConfig, Recipe, RowsConfig
from surgery_r1.geometry import location_rule
from surgery_r1.records import AnnotatedObject, Frame, Sample

ANSWERS_OF_KIND = load_format("endovis18_extended").answers
WORDS = SourceWords(ANSWERS_OF_KIND)
NORMAL, FLIPPED = location_rule("image-normal"), location_rule("image-flipped")
OBJECTS = (
    AnnotatedObject("kidney", None, None, (20, 20, 140, 110)),
    AnnotatedObject("bipolar_forceps", "Grasping", "left-top", (5, 5, 60, 50)),
    AnnotatedObject("suction", "Suction", "right-bottom", (100, 80, 150, 120)),
)
QUESTIONS = {
    "organ": ("kidney", "kidney", OBJECTS[0].box_px),
    "state": ("bipolar_forceps", "Grasping", OBJECTS[1].box_px),
    "location": ("bipolar_forceps", "left-top", OBJECTS[1].box_px),
    "tool": ("right-bottom", "suction", OBJECTS[2].box_px),
}
GOOD = "The bipolar forceps in the upper left hold the tissue, so the state is Grasping."


def sample_of(kind: str) -> Sample:
    subject, answer, box = QUESTIONS[kind]
    head = ("endovis18", "train", "seq_2", "frame003", "x.png", 160, 128, "?")
    return Sample(f"endovis18/seq_2/frame003/{kind}", *head, kind, subject, answer, box)


def frame_of(objects=OBJECTS) -> Frame:
    return Frame("endovis18/seq_2/frame003", "x.png", 160, 128, "00", objects)


def reasons(text: str, kind: str = "state", rule=NORMAL, answer: str | None = None, neighbours=(), fault=None):
    limits = ReasoningConfig(max_words=60)
    context = CheckContext(sample_of(kind), frame_of(), WORDS, rule, limits, {plain(n) for n in neighbours})
    return rejections(Draft(text, answer, fault), context)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("state", GOOD),
        ("state", "The forceps close on a fold of tissue. This is Grasping, while the suction is at work below."),
        ("location", "The tip of the bipolar_forceps is left of and above the center, so it is left-top."),
        ("location", "It is seen in the upper left part of the frame; the suction is on the right. So: top left."),
        ("location", "The bipolar-forceps lie to the left of the suction, so the place is left-top."),
        ("state", "Traction is provided by the forceps, given how the fold stands; a hint of blood. It is Grasping."),
        ("organ", "The suction in the right-bottom works beside the kidney, so the organ is kidney."),
        ("state", "The tip is closed, which rules out Idle; no scissors are near the forceps. It is Grasping."),
        ("state", "The forceps draw the fold to the left, by the right side of the tissue bundle: Grasping."),
        ("state", "Suction is not being applied here by the forceps, which hold the fold: this is Grasping."),
        ("organ", "What the forceps hold is neither the liver nor the spleen, but the kidney."),
        ("location", "At the top of the frame and on its left the bipolar forceps are seen: upper left."),
        ("tool", "In the lower right a thin tube takes up the blood by suction, so the tool is suction."),
        ("tool", "Suction is what the tube in the bottom right is there for. It is the suction."),
    ],
)
def test_good_reasoning_passes(kind, text):
    assert reasons(text, kind) == []


#: kind, text and the check that must catch it.
PLANTED = [
    ("state", "", "empty"),
    ("state", " \n", "empty"),
    ("state", "Der Greifer ist geschlossen und zieht am Gewebe, also lautet der Zustand Grasping.", "language"),
    ("state", "De tang is in het beeld en houdt het weefsel vast, zo is het Grasping.", "language"),
    ("state", "A pin\u00e7a segura o tecido com as duas garras, e por isso o estado \u00e9 Grasping.", "language"),
    ("state", "La pince tient le tissu fermement, donc son geste reste Grasping.", "language"),
    ("state", "器械夹住了组织，所以它的状态是 Grasping。", "language"),
    ("state", "It is Grasping.", "length"),
    ("state", GOOD + " It is so." * 30, "length"),
    ("state", "<b>The forceps</b> hold the tissue, so the state is Grasping.", "markup"),
    ("state", "The forceps hold the tissue.</think><answer>Grasping</answer>", "markup"),
    ("state", "The forceps at [5, 5, 600, 50] hold the tissue, so the state is Grasping.", "box_outside"),
    ("state", "The forceps at (-5, 5, 60, 50) hold the tissue, so the state is Grasping.", "box_outside"),
    ("state", "From (50, 50) to (2000, 1400) the forceps hold the tissue: Grasping.", "coordinates"),
    ("state", "At x1=50, y1=50 the forceps hold the tissue, so it is Grasping.", "coordinates"),
    ("state", "The forceps at 50, 50, 2000, 1400 hold the tissue, so it is Grasping.", "box_outside"),
    ("state", "The forceps at [5, 5, 60, 50] hold the tissue, so the state is Grasping.", "coordinates"),
    ("state", "The given answer says that the forceps hold the tissue, so the state is Grasping.", "leak"),
    ("state", "According to the ground truth the forceps hold the tissue, so it is Grasping.", "leak"),
    ("state", "As provided, the forceps hold the tissue in the frame, so the state is Grasping.", "leak"),
    ("state", "The region that was given holds the forceps, which grip tissue, so it is Grasping.", "leak"),
    ("state", "Given that the answer is Grasping, the forceps must hold the tissue.", "leak"),
    ("state", "The object list says that the forceps hold tissue, so it is Grasping.", "leak"),
    ("state", "Based on the provided information the forceps hold tissue, so it is Grasping.", "leak"),
    ("state", "I was told that the forceps in this frame hold tissue, so it is Grasping.", "leak"),
    ("state", "The annotations show that the forceps hold tissue, so the state is Grasping.", "leak"),
    ("state", "The correct answer is Grasping, since the forceps hold the tissue.", "leak"),
    ("state", "The bipolar forceps in the upper left hold a fold of the tissue.", "no_answer"),
    ("state", "The bipolar forceps in the upper left are open, so it is not Grasping.", "no_answer"),
    ("location", "The bipolar forceps are seen beside the kidney in this frame.", "no_answer"),
    ("state", "The forceps hold the tissue like Grasping, but the state is Idle.", "wrong_answer"),
    ("location", "The bipolar forceps are left-top at first sight, yet it is right-top.", "wrong_answer"),
    ("organ", "The kidney is pale in this frame, so the organ is the liver.", "wrong_answer"),
    ("tool", "The suction is in the lower right, next to the tool, the bipolar_forceps.", "wrong_answer"),
    ("state", "The stapler is beside the forceps that hold the tissue, so the state is Grasping.", "absent_tool"),
    ("state", "The scissors wait while the forceps hold the tissue, so the state is Grasping.", "absent_tool"),
    ("state", "A grasper holds the tissue beside the forceps, so the state is Grasping.", "absent_tool"),
    ("state", "The staplers wait while the forceps hold the tissue: it is Grasping.", "absent_tool"),
    ("state", "The large needle driver holds the tissue, so the state is Grasping.", "absent_tool"),
    ("state", "The bipolar forceps in the right-bottom hold the tissue, so it is Grasping.", "wrong_place"),
    ("state", "The bipolar forceps at the lower right hold the tissue, so it is Grasping.", "wrong_place"),
    ("state", "The bipolar forceps on the right hold the tissue, so the state is Grasping.", "wrong_place"),
    ("state", "Below the center the bipolar forceps hold the tissue, so it is Grasping.", "wrong_place"),
    ("organ", "With the suction in the left-top the kidney is seen, so the organ is kidney.", "wrong_place"),
    ("state", "The forceps at the bottom of the frame hold the tissue, so the state is Grasping.", "wrong_place"),
    ("state", "In the right hand part the bipolar forceps hold the tissue, so it is Grasping.", "wrong_place"),
    ("location", "It is in the right half of the frame. So the place is left-top.", "wrong_place"),
    ("state", "The suction is Idle, and the bipolar forceps hold tissue, so it is Grasping.", "wrong_state"),
    ("tool", "The suction is doing Clipping in the right-bottom, so the tool is suction.", "wrong_state"),
    ("state", GOOD.upper().replace("GRASPING", "Grasping"), "copy"),
]


@pytest.mark.parametrize(("kind", "text", "check"), PLANTED)
def test_planted_bad_reasoning_is_caught(kind, text, check):
    assert check in reasons(text, kind, neighbours=[GOOD] if check == "copy" else ())


def test_every_check_has_a_planted_reasoning():
    assert {name for name, _ in CHECKS} <= {check for *_, check in PLANTED} | {"own_answer"}


def test_the_writers_own_answer_must_be_gold():
    text = "The bipolar forceps in the upper left hold the tissue with both jaws."
    assert reasons(text, answer="Grasping") == reasons(text, answer=" grasping ") == []
    assert reasons(text, answer="Idle") == reasons(text, answer="") == reasons(text, answer="Grasping or Idle")
    assert reasons(text, answer="Idle") == ["own_answer"]
    assert reasons("The forceps are in the upper left of the frame.", "location", answer="top left") == []
    assert reasons(GOOD, fault="cut_off") == ["cut_off"]


def test_a_right_last_line_does_not_save_a_text_about_something_else():
    weather = "The weather is fine and the sun is in the sky, which the birds of the wood like."
    assert reasons(weather, answer="Grasping") == ["no_answer"]
    assert reasons("The forceps hold a fold of the tissue that is lifted.", answer="Grasping") == []
    text = "It is left-top, opposite the suction in the right-bottom."
    assert reasons(text, "location", answer="left-top") == [] and reasons(text, "location") == ["wrong_answer"]
    assert reasons(text, "location", answer="the upper left") == []
    assert reasons(text, "location", answer="not left-top") == ["own_answer"]


@pytest.mark.parametrize("rule", [FLIPPED, location_rule("organ-normal"), None], ids=["flipped", "organ", "none"])
def test_words_for_places_are_what_is_seen_and_classes_what_is_labelled(rule):
    """A tool that is seen at the lower left, and that labels call left-top by a rule of their own."""
    low = (OBJECTS[0], AnnotatedObject("bipolar_forceps", "Grasping", "left-top", (5, 70, 60, 110)))
    for words, expected in (("lower left", []), ("left-top", []), ("upper left", ["wrong_place"])):
        text = f"The bipolar forceps in the {words} hold the tissue, so the state is Grasping."
        context = CheckContext(sample_of("state"), frame_of(low), WORDS, rule)
        assert rejections(Draft(text), context) == expected


def test_places_of_other_sets_go_by_their_own_names():
    words = SourceWords({"state": ("Grasping",), "location": ("upper left", "lower right"), "tool": ("suction",)})
    head = ("own", "train", "v", "f", "x.png", 160, 128, "?")
    sample = Sample("own/v/f/0", *head, "location", "suction", "lower right", OBJECTS[2].box_px)
    seen = (AnnotatedObject("suction", None, "lower right", OBJECTS[2].box_px),)
    for answer, expected in (("lower right", []), ("upper left", ["wrong_answer"])):
        text = f"the suction is seen in the {answer} part of the frame, so it is {answer}"
        assert rejections(Draft(text), CheckContext(sample, frame_of(seen), words)) == (
            expected if answer == "lower right" else ["no_answer", "wrong_answer"]
        )


class Scripted:
    """Says what it is told to, attempt by attempt."""

    name, workers = "scripted", 1

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.tasks: list[RationaleRequest] = []

    def write(self, task: RationaleRequest) -> Draft:
        self.tasks.append(task)
        return Draft(self.texts[task.number][task.attempt])

    def stop(self):
        self.stopped = True

    def facts(self):
        return {}


def rationales(writer, cot: int, workers: int = 1) -> RationaleGenerator:
    writer.workers = workers
    recipe = Recipe(rows=RowsConfig(cot=cot), reasoning=ReasoningConfig(("scripted",), attempts=3), seed=7)
    return RationaleGenerator(recipe, {"scripted": writer}, {"endovis18": NORMAL}, {"endovis18": ANSWERS_OF_KIND})


def test_rejected_reasoning_is_tried_again_then_dropped_and_counted():
    other = "Both jaws of the bipolar forceps are closed on the tissue: Grasping."
    bad = "The stapler holds the tissue, so the state is Grasping."
    writer = Scripted((bad, GOOD), (GOOD, GOOD + "!", other), (bad, bad, ""))
    ask = rationales(writer, cot=3)
    sample, frame = sample_of("state"), frame_of()
    (((_, _, asked), (found,)),) = ask([(frame, [sample], [sample])])
    assert asked == [sample]
    assert [(r.text, r.attempts) for r in found] == [(GOOD, 2), (other, 3)]
    assert found[0].checks == {**dict.fromkeys([name for name, _ in CHECKS], True), "attempts": 2}
    counts = ask.counts["scripted"]
    assert (counts.asked, counts.dropped) == (3, 1)
    assert counts.rejected == Counter(absent_tool=3, copy=2, empty=1)
    assert counts.to_json()["accepted"] == 2 and counts.to_json()["at_first_attempt"] == 0
    assert [(t.number, t.attempt) for t in writer.tasks] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] + [
        (2, attempt) for attempt in range(3)
    ]
    assert all(task.seed == 7 for task in writer.tasks)


def test_a_writer_is_told_when_the_build_is_over():
    writer = Scripted((GOOD,))
    frames = [Frame(f"endovis18/seq_2/frame00{i}", "x.png", 160, 128, "00", OBJECTS) for i in range(9)]
    going = rationales(writer, cot=1, workers=2)((f, [], [sample_of("state")]) for f in frames)
    next(going)
    going.close()
    assert writer.stopped and len(writer.tasks) < 9


def test_order_does_not_depend_on_threads():
    import threading

    class Slow(Scripted):
        """Finishes the frames in another order than it is asked."""

        def write(self, task):
            threading.Event().wait(0.01 * (7 * int(task.frame.frame_id[-1]) % 5))
            return Draft(f"{GOOD[:-1]} as in frame {task.frame.frame_id[-1]}.")

    def run(workers):
        frames = [Frame(f"endovis18/seq_2/frame00{i}", "x.png", 160, 128, "00", OBJECTS) for i in range(9)]
        ask = rationales(Slow(), cot=1, workers=workers)
        return [found[0][0].text for _, found in ask((f, [], [sample_of("state")]) for f in frames)]

    assert run(4) == run(1) and len(set(run(1))) == 9
