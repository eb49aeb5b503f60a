"""The contrast: what is registered before the first stage, and refused where it could not be judged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1._util import toml
from surgery_r1._util.checked import Count
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.metrics import F_SCORES, METRICS
from surgery_r1.reproduce.rows import ROWS
from surgery_r1.rewards.custom import is_custom
from surgery_r1.train.config import TrainConfig

SHIPPED = Path(__file__).with_name("contrast.toml")

#: Measures of a rationale that another question's took the place of, see :mod:`surgery_r1.evaluate.swapped`.
SWAPPED = ("swapped_answer_follows", "swapped_answer_kept", "swapped_box_follows", "swapped_box_kept")
MEASURES = (*METRICS, *SWAPPED)

#: Groups of questions that a claim may be about, beside the kinds.
GROUPS = ("all", "tools", "organs")

_ANSWER = {"answer", "coherence", "joint", "referent", "spatial", "rationale", "coherence_all"}
_BOX = {"box", "box_dense", "coherence", "joint", "referent", "spatial", "coherence_all"}
_RATIONALE = {"rationale", "coherence_all"}

#: Measure -> rewards that look at it or at a part of it. At what is absent here none looks.
PAID_BY: dict[str, set[str]] = {
    **dict.fromkeys(("acc", "acc_rare", *F_SCORES), _ANSWER),
    **dict.fromkeys(("miou", "miou_published", "acc_at_iou50", "no_referent"), _BOX),
    **dict.fromkeys(("joint", "joint_at_iou50"), _ANSWER | _BOX),
    "wrong_referent_strict": {"referent"},
    "wrong_referent_broad": {"referent"},
    **dict.fromkeys(("rationale_answer", "rationale_contradicts", "rationale_right"), _RATIONALE),
    "answer_box": {"spatial"},
    "parse_failure_rate": {"format", *_ANSWER, *_BOX},
}


@dataclass(frozen=True, slots=True)
class Claim:
    """One difference that decides: ``a`` minus the best of ``b``.

    Attributes:
        measure: one of :data:`MEASURES`.
        a, b: rows; of several ``b`` the one that is best at the measure is the rival.
        split: ``val``, or ``test`` for the cross-set.
        questions: ``all``, ``tools`` or ``organs`` (as wrong referents are counted), or a question kind.
        above, below: one of them: the whole interval of the difference must lie on that side of it. ``below`` says
            that less is better.
    """

    measure: str
    a: str
    b: tuple[str, ...]
    split: str = "val"
    questions: str = "all"
    above: float | None = None
    below: float | None = None

    @property
    def bound(self) -> float:
        """What the interval must not reach."""
        found = self.above if self.above is not None else self.below
        assert found is not None
        return found

    @property
    def title(self) -> str:
        """The claim in words."""
        about = "" if self.questions == "all" else f" ({self.questions})"
        rivals = " or ".join(ROWS[name].title for name in self.b)
        best = f"the better of {rivals}" if len(self.b) > 1 else rivals
        side = "above" if self.above is not None else "below"
        return f"{self.measure}{about}, {self.split}: {ROWS[self.a].title} minus {best} {side} {self.bound:g}"

    @property
    def needs_rationales(self) -> bool:
        """Whether there is nothing to measure in replies without a rationale."""
        return self.measure in SWAPPED or self.measure.startswith("rationale_")


@dataclass(frozen=True, slots=True)
class Contrast:
    """A whole contrast file."""

    title: str
    claims: tuple[Claim, ...]
    swapped_questions: Count = 0

    def rows_swapped(self, split: str) -> set[str]:
        """Rows in whose mouth another rationale is put, on a split."""
        claims = [claim for claim in self.claims if claim.measure in SWAPPED and claim.split == split]
        return {name for claim in claims for name in (claim.a, *claim.b)}


def read_contrast(path: Path) -> Contrast:
    """A contrast file.

    Raises:
        SurgeryR1Error: for no TOML, and for all unknown keys, names and values at once.
    """
    data, text = toml.load_toml(path)
    return toml.build(Contrast, data, path, text, _wrong)


def _wrong(contrast: Contrast) -> Iterator[str]:
    if not contrast.claims:
        yield "claims is empty: nothing could fail"
    for number, claim in enumerate(contrast.claims, start=1):
        at = f"claims: number {number}"
        if claim.measure not in MEASURES:
            yield f"{at}: unknown measure {claim.measure!r}, use one of {', '.join(MEASURES)}"
        for name in (claim.a, *claim.b):
            if name not in ROWS:
                yield f"{at}: unknown row {name!r}, use one of {', '.join(ROWS)}"
        if not claim.b or claim.a in claim.b:
            yield f"{at}: b = {list(claim.b)}: name rows other than a = {claim.a!r}"
        if (claim.above is None) == (claim.below is None):
            yield f"{at}: give one of above and below: where the whole interval must lie"
        if claim.split not in ("val", "test"):
            yield f"{at}: split = {claim.split!r}, use val or test (the cross-set)"
        if claim.questions not in (*GROUPS, *vocab.KINDS):
            yield f"{at}: questions = {claim.questions!r}, use one of {', '.join((*GROUPS, *vocab.KINDS))}"


def check_contrast(contrast: Contrast, config: TrainConfig, splits: Collection[str], path: Path) -> None:
    """Refuse what could never be judged, or would be judged by rewarded measures alone.

    Args:
        splits: that have questions.

    Raises:
        SurgeryR1Error: for a claim on a split without questions or on rationales of a row that writes none, and where
            a reward of the config pays for every measure.
    """
    for claim in contrast.claims:
        if claim.split not in splits:
            raise SurgeryR1Error(
                f"the dataset has no questions in {claim.split}, which a claim is about", where=path, fix="name another"
            )
        mute = [name for name in (claim.a, *claim.b) if not ROWS[name].reasoning(config)]
        if claim.needs_rationales and mute:
            raise SurgeryR1Error(
                f"{claim.measure} needs rationales, and {mute[0]} is predicted without",
                where=path,
                fix="name rows with a rationale, or another measure",
            )
    paid = set(config.rft.rewards)
    if all(PAID_BY.get(claim.measure, set()) & paid for claim in contrast.claims):
        raise SurgeryR1Error(
            f"every measure of the contrast is paid for by a reward of this config ({', '.join(sorted(paid))})",
            where=path,
            fix="add a claim on one that none pays for, such as swapped_answer_follows or wrong_referent_broad",
        )


def paid_for(measure: str, config: TrainConfig) -> bool | None:
    """Whether a reward of the config pays for a measure; None where one of the user's own might."""
    if PAID_BY.get(measure, set()) & set(config.rft.rewards):
        return True
    return None if any(map(is_custom, config.rft.rewards)) else False
