"""The rewards: pure functions ``(text, truth) -> number in [0, 1], or None where the reward does not apply``.

Whether a reward applies depends on the truth alone, never on the text: were it otherwise, a reply could raise its total
by making a reward vanish. Only ``format`` looks at the problems of a reply; the others score what the codec took, as
evaluation does, and the codec takes nothing that was written twice. The one difference from evaluation is that a box
which fills the frame is paid less than its IoU.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib

from surgery_r1 import codec, geometry
from surgery_r1.data.rationales.checks import SourceWords
from surgery_r1.data.rationales.claims import conclusion
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.matching import Match, Referent, match, other_objects, referent
from surgery_r1.rewards.custom import Reward, is_custom, load_reward
from surgery_r1.rewards.truth import Truth


def _read(text: str, truth: Truth) -> codec.Prediction:
    """The reply in source terms, without what the task did not ask for."""
    reading = codec.read_reply(text, truth.box_space, truth.view)
    parts = truth.parts
    # An answer volunteered in a grounding task must not choose the box that it is compared with.
    answer = reading.answer if parts["answer"] else None
    return codec.Prediction(reading.rationale, answer, reading.box_px if parts["box"] else None, reading.problems)


def _match(reading: codec.Prediction, truth: Truth) -> Match:
    """The comparison that evaluation makes, less what a frame-filling box would be paid for pointing at everything.

    Without that, the laziest box of all pays: over the 9,014 training questions of the drawn scenes the whole frame has
    a mean IoU of .133 and the mean box of .107 (November 2026). Every box up to three quarters of the frame keeps its
    true IoU, see :func:`geometry.pointing`. Evaluation never discounts.
    """
    matched = match(reading, truth.accepted)
    if reading.box_px is None:
        return matched
    box = truth.accepted[matched.truth][1]
    if box is None or matched.iou is None:
        return matched
    pointing = geometry.pointing(reading.box_px, box, truth.width, truth.height)
    return dataclasses.replace(matched, iou=matched.iou * pointing)


def format_reward(text: str, truth: Truth) -> float:
    """1 for exactly the parts asked for, each once, in order, nothing around them, reasoning in words; else 0.

    All or nothing on purpose: credit for single tags pays for writing tags, and a group in which every reply is half
    right has nothing to learn from. Reasoning must hold a letter or digit, so that blanks that are not white space to
    Python (zero-width ones) do not pass. How good the reasoning is, no rule can tell.
    """
    parsed = codec.parse(text)
    if not parsed.well_formed(**truth.parts):
        return 0.0
    return float(parsed.rationale is None or any(character.isalnum() for character in parsed.rationale))


def answer_reward(text: str, truth: Truth) -> float | None:
    """1 for an accepted answer, letter by letter, else 0; None where no answer was asked for (Grounding-QA)."""
    if not truth.parts["answer"]:
        return None
    return float(_match(_read(text, truth), truth).answer_right)


def box_reward(text: str, truth: Truth) -> float | None:
    """True IoU in source pixels with the accepted box, 0 without a box; None where none was asked for (Visual-QA).

    A box of more than three quarters of the frame, and more than the truth, earns less: see :func:`geometry.pointing`.
    """
    if not truth.parts["box"]:
        return None
    return _match(_read(text, truth), truth).iou


def box_dense_reward(text: str, truth: Truth) -> float | None:
    """Mean of IoU and corner closeness: graded for boxes that do not overlap yet. None where no box was asked for.

    For a base model that points next to things; IoU alone gives such a group nothing to compare. Not GIoU, under
    which a frame-sized box earns more than the mean box of the training set (see :func:`geometry.closeness`). Ours.
    """
    if not truth.parts["box"]:
        return None
    reading = _read(text, truth)
    if reading.box_px is None:
        return 0.0
    matched = _match(reading, truth)
    box = truth.accepted[matched.truth][1]
    assert box is not None and matched.iou is not None, "a task that asks for a box has one"
    return (matched.iou + geometry.closeness(reading.box_px, box, truth.width, truth.height)) / 2


def _asks_for_both(truth: Truth) -> bool:
    return truth.parts["answer"] and truth.parts["box"]


def coherence_joint(text: str, truth: Truth) -> float | None:
    """Multimodal Coherence: the IoU if the answer is right, else 0. None unless answer and box were asked for.

    The paper's formula is not public; this is our reading of its aim, a reward for an answer that its box shows.
    """
    if not _asks_for_both(truth):
        return None
    return _match(_read(text, truth), truth).joint


def coherence_referent(text: str, truth: Truth) -> float | None:
    """:func:`coherence_joint`, but 0 unless the box refers to what was asked about (:func:`matching.referent`).

    A right answer with a box on the wrong instrument is the paper's positional illusion; joint pays for it wherever the
    two instruments overlap. None where the frame has no other annotated object. Evaluation counts by the same
    function: a tie is paid, and where several objects are right, a box on any of them refers rightly. Ours.
    """
    if not _asks_for_both(truth) or not other_objects(truth, truth.objects):
        return None
    reading = _read(text, truth)
    if referent(reading.box_px, truth, truth.objects) is not Referent.OWN:
        return 0.0
    return _match(reading, truth).joint


def coherence_spatial(text: str, truth: Truth) -> float | None:
    """:func:`coherence_joint` for location questions, but 0 unless the answer names the quadrant of the model's box.

    None for other questions, and where the measured rule cannot be applied: not measured, followed by less than
    :data:`MIN_AGREEMENT` of the labels, or relative to an organ that this frame lacks. Ours.
    """
    rule = truth.usable_rule
    if not _asks_for_both(truth) or truth.kind != "location" or rule is None:
        return None
    reading = _read(text, truth)
    if reading.answer is None or reading.box_px is None:
        return 0.0
    if reading.answer != geometry.quadrant(reading.box_px, rule, truth.width, truth.height, truth.organ_box):
        return 0.0
    return _match(reading, truth).joint


@functools.lru_cache(maxsize=64)
def _words(classes: tuple[tuple[str, tuple[str, ...]], ...]) -> SourceWords:
    return SourceWords(dict(classes))


def rationale_reward(text: str, truth: Truth) -> float | None:
    """1 if the rationale ends at an accepted answer and that very answer is given, else 0.

    Without it nothing that RFT is paid for looks at the rationale: answers improve and rationales come to contradict
    them. Where a rationale ends is what evaluation reads (:func:`surgery_r1.data.rationales.claims.conclusion`). None
    unless reasoning and answer were asked for, and where the classes of the question's kind are not known. Ours.
    """
    asked = truth.parts
    if not (asked["reasoning"] and asked["answer"]) or truth.kind not in dict(truth.classes):
        return None
    reading = _read(text, truth)
    if reading.rationale is None or not _match(reading, truth).answer_right:
        return 0.0
    ends_at = conclusion(reading.rationale, truth.kind, _words(truth.classes), truth.trusted_rule)
    return float(ends_at == reading.answer)


def coherence_all(text: str, truth: Truth) -> float | None:
    """:func:`coherence_joint`, but 0 unless the rationale ends at the answer too: all three must agree.

    A fuller reading of Multimodal Coherence than answer and box alone. None where :func:`rationale_reward` or
    :func:`coherence_joint` is. Ours.
    """
    said = rationale_reward(text, truth)
    joint = coherence_joint(text, truth)
    return None if said is None or joint is None else said * joint


def random_reward(text: str, truth: Truth, seed: int = 0) -> float:
    """A number in [0, 1) that knows nothing of the truth: the control for RFT.

    Drawn from sha256 of seed, sample and text, so that a run can be repeated; the same text earns the same again.
    """
    key = f"{seed}\0{truth.sample_id}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:6], "big") / 2**48


#: Every reward by the name that configs, logs and trainers use. ``joint`` is another name of ``coherence``.
REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "answer": answer_reward,
    "box": box_reward,
    "box_dense": box_dense_reward,
    "coherence": coherence_joint,
    "joint": coherence_joint,
    "referent": coherence_referent,
    "spatial": coherence_spatial,
    "rationale": rationale_reward,
    "coherence_all": coherence_all,
    "random": random_reward,
}


def reward_named(name: str) -> Reward:
    """The reward of that name, or the function of ``path.py:function``.

    Raises:
        SurgeryR1Error: when there is none, with the nearest name; for a function see
            :func:`surgery_r1.rewards.custom.load_reward`.
    """
    if is_custom(name):
        return load_reward(name)
    if name not in REWARDS:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(REWARDS)}"
        raise SurgeryR1Error(f"unknown reward {name!r}", fix=fix)
    return REWARDS[name]
