"""Question forms that a dataset format does not know: leaving out a whole form is an error, a stray line is not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import DatasetFormat, several
from surgery_r1.data.formats.lines import question_key
from surgery_r1.data.formats.validation import ValidationIssue, shown

#: Forms that are remembered; a set with more of them has no forms but free text.
_MOST_FORMS = 1000
_FORMS_SHOWN = 10
#: Stray lines, each of a form of its own, are an error when they are a larger share than this of all questions.
_STRAY_SHARE = 0.01


@dataclass(slots=True)
class _Form:
    count: int
    path: str
    line: int
    question: str


class QuestionForms:
    """Looks at one question after the other. A form is a question with class names, places and numbers blanked out."""

    def __init__(self, dataset_format: DatasetFormat) -> None:
        self._format = dataset_format
        names = {*dataset_format.subjects, *(name for kind in dataset_format.answers.values() for name in kind)}
        words = {vocab.spoken(text) for name in names for text in (name, _turned(name)) if text}
        patterns = (r"[\s_-]+".join(map(re.escape, word.split())) for word in words if word)
        longest_first = "|".join(sorted(patterns, key=len, reverse=True))
        self._names = re.compile(rf"(?<!\w)(?:{longest_first}|[0-9]+)(?!\w)", re.I)
        self._known: dict[str, str] = {}
        self._unknown: dict[str, _Form] = {}
        self._asked = self._unread = 0

    def form_of(self, question: str) -> str:
        """The form of a question, in small letters."""
        return self._names.sub("_", question_key(question))

    def known(self, kind: str, question: str) -> None:
        """Take a question into account that the format reads."""
        self._asked += 1
        if len(self._known) < _MOST_FORMS:
            self._known.setdefault(self.form_of(question), kind)

    def unknown(self, path: str, line: int, question: str) -> None:
        """Take one into account that it does not."""
        self._asked += 1
        self._unread += 1
        form = self.form_of(question)
        if form in self._unknown:
            self._unknown[form].count += 1
        elif len(self._unknown) < _MOST_FORMS:
            self._unknown[form] = _Form(1, path, line, question)

    def errors(self) -> Iterator[ValidationIssue]:
        """An error for each form that more than one line has, and one for stray lines where they are many."""
        forms = sorted(self._unknown.items(), key=lambda item: -item[1].count)
        whole = [(form, found) for form, found in forms if found.count > 1]
        for form, found in whole[:_FORMS_SHOWN]:
            value = f"{found.count:,} lines are left out, such as {shown(found.question, 100)}"
            yield ValidationIssue(found.path, found.line, validation.FORM_LEFT_OUT, value, self._fix(form))
        rest = whole[_FORMS_SHOWN:] + [(form, found) for form, found in forms if found.count == 1]
        # Those beyond the forms that are remembered count as well.
        left = self._unread - sum(found.count for _, found in whole[:_FORMS_SHOWN])
        if rest and left > max(1, _STRAY_SHARE * self._asked):
            form, found = rest[0]
            value = f"{left:,} lines of {len(rest):,} more forms are left out, such as {shown(found.question, 100)}"
            yield ValidationIssue(found.path, found.line, validation.FORM_LEFT_OUT, value, self._fix(form))

    def _fix(self, form: str) -> str:
        """What to do about an unknown form, with the nearest known one."""
        near = difflib.get_close_matches(form, self._known, n=1, cutoff=0.0)
        if near:
            kind = self._known[near[0]]
            known = f"the nearest known form is {shown(near[0], 100)} (kind {kind})"
        else:
            patterns = [f"{kind}: {shown(several(texts)[0], 80)}" for kind, texts in self._format.questions.items()]
            known = f"known are {'; '.join(patterns)}"
        return (
            f"{known}; add a pattern for it to [questions] of an adapter, or build with --on-fault skip to leave it out"
        )


def _turned(name: str) -> str:
    """A name of two words with the other word first."""
    return " ".join(reversed(vocab.spoken(name).split()))
