"""The one place where label records become the questions of a frame, whoever found the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery_r1._util.images import ImageSizeError
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import DatasetFormat
from surgery_r1.data.formats.fields import FieldParser
from surgery_r1.data.formats.image_files import checked_size
from surgery_r1.data.formats.label_records import LabelRecord
from surgery_r1.data.formats.lines import LabelLine, LineError, question_key
from surgery_r1.data.formats.question_forms import QuestionForms
from surgery_r1.data.formats.questions import derive_objects, merge_answers
from surgery_r1.data.formats.source import FrameContent
from surgery_r1.data.formats.validation import ValidationIssue, shown
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box
from surgery_r1.records import Frame, Sample

#: Width and height in pixels of a frame's image, or what is wrong with it.
ImageCheck = tuple[tuple[int, int] | None, ValidationIssue | None]


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Which frame it is and where its files lie, as whoever looked for them found it.

    Attributes:
        source, sequence, frame: the parts of its id.
        split: None where its sequence belongs to none; ``error`` says so.
        image: None where there is none; ``error`` says so.
        relative: path of the image below the image root, with ``/``.
        labels: its label files; errors of the frame as a whole name the first.
        line: the line of that file that they name.
        error: why the frame cannot be used.
    """

    source: str
    sequence: str
    frame: str
    split: str | None
    image: Path | None
    relative: str
    labels: tuple[Path, ...]
    line: int = 1
    error: ValidationIssue | None = None


class FrameAssembler:
    """Puts frames together from what their label files say.

    Args:
        dataset_format: says what questions, answers and boxes mean.
        known_tools: questions about a state or a place of others are kept with a warning; None: of any tool.

    Attributes:
        asked: questions seen so far by kind; those of no kind under :data:`validation.UNKNOWN_FORM`.
        forms: what is known of the forms of these questions.
    """

    def __init__(self, dataset_format: DatasetFormat, known_tools: Collection[str] | None = None) -> None:
        self._parser = FieldParser(dataset_format)
        self._known_tools = known_tools
        self.asked: Counter[str] = Counter()
        self.forms = QuestionForms(dataset_format)

    def frame(self, place: FramePlace, files: Mapping[Path, Sequence[LabelRecord]], image: ImageCheck) -> FrameContent:
        """The frame with its sound questions; faulty ones are left out, listed and counted.

        ``image`` is what :func:`check_image` says of the place: whoever calls may ask for many at a time.

        ``files`` are the records of each label file, or of several that together are one, the preferred first.
        A question that an earlier file has already answered is not counted again; only questions that are new there
        are taken from a later file.
        """
        content = FrameContent(labels=list(place.labels))
        size, error = image
        error = place.error or error
        if error is not None:
            content.errors.append(error)
        lines = self._lines(files, size, content)
        if error is not None:
            content.skipped[error.what] += len(merge_answers(lines)[0])
        elif lines and place.split is not None and size is not None:
            _fill(content, place, place.split, size, lines)
        return content

    def _lines(
        self, files: Mapping[Path, Sequence[LabelRecord]], size: tuple[int, int] | None, content: FrameContent
    ) -> list[LabelLine]:
        """The sound lines of all files."""
        lines: list[LabelLine] = []
        # Questions that are not understood, and the first file that has them.
        unread: dict[str, Path] = {}
        # Ids keep the position in the file, faulty lines included, so that repairing one line renames no other.
        position = -1
        for path, records in files.items():
            if not records:
                what, fix = "label file without questions", "nothing to do, or restore the file"
                content.warnings.append(ValidationIssue(str(path), None, what, "0 lines", fix))
            earlier = {group[0].key: group for group in merge_answers(lines)[0]}
            written: set[tuple[str, str, tuple[Box, ...]]] = set()
            for record in records:
                position += 1
                known = earlier.get(question_key(str(record.fields.get("question", ""))))
                if known:
                    self._compare(record, known, size, content)
                    continue
                line = self._line(record, position, size, content, unread)
                if line is None:
                    continue
                said = (line.key, line.answer, line.boxes)
                if said in written:
                    content.leave_out(record.issue(validation.DUPLICATE, shown(record.text, 80), "delete the line"))
                    continue
                written.add(said)
                lines.append(line)
        return lines

    def _line(
        self,
        record: LabelRecord,
        position: int,
        size: tuple[int, int] | None,
        content: FrameContent,
        unread: dict[str, Path],
    ) -> LabelLine | None:
        if record.error is not None:
            content.leave_out(record.error)
            return None
        question = record.fields["question"].strip()
        found = self._parser.question(question)
        if found is None and unread.setdefault(question_key(question), record.path) != record.path:
            content.repeated += 1
            return None
        self.asked[found[0] if found else validation.UNKNOWN_FORM] += 1
        if found is None:
            self.forms.unknown(str(record.path), record.line, question)
            fix = "the line is left out; [questions] of the dataset format says what is read"
            content.warnings.append(record.issue(validation.UNKNOWN_FORM, shown(question), fix))
            content.skipped[validation.UNKNOWN_FORM] += 1
            return None
        kind, subject = found
        self.forms.known(kind, question)
        try:
            answer = self._parser.answer(kind, record.fields["answer"])
            boxes = self._parser.boxes(record.fields.get("box", []), size)
        except LineError as error:
            content.leave_out(error.issue(record.path, record.line))
            return None
        if self._known_tools is not None and kind in ("state", "location") and subject not in self._known_tools:
            fix = "the question is kept; check the spelling"
            content.warnings.append(record.issue("unknown tool in a question", repr(subject), fix))
        return LabelLine(record.path, record.line, position, question, kind, subject, answer, boxes)

    def _compare(
        self, record: LabelRecord, known: list[LabelLine], size: tuple[int, int] | None, content: FrameContent
    ) -> None:
        """Count a question that an earlier file has; warn where the answer or the box there is another one."""
        content.repeated += 1
        if not self._is_same(record, known, size):
            value = f"{shown(record.text)} differs from {known[0].path}:{known[0].line}; the latter is used"
            content.warnings.append(record.issue("label files disagree", value, "delete the wrong file"))

    def _is_same(self, record: LabelRecord, known: list[LabelLine], size: tuple[int, int] | None) -> bool:
        # Surgical-VQA, the label set before boxes were added, has question and answer alone.
        boxless = record.fields.keys() >= {"question", "answer"} and "box" not in record.fields
        if record.error is not None and not boxless:
            return False
        try:
            answer = self._parser.answer(known[0].kind, record.fields["answer"])
            boxes = () if boxless else self._parser.boxes(record.fields["box"], size)
        except LineError:
            return False
        return any(line.answer == answer and (boxless or line.boxes == boxes) for line in known)


def check_image(place: FramePlace) -> ImageCheck:
    """Read and decode a frame's image. May be called from several threads."""
    if place.image is None or place.error is not None:
        return None, None
    try:
        return checked_size(place.image), None
    except SurgeryR1Error as error:
        what = validation.IMAGE_SIZE if isinstance(error, ImageSizeError) else validation.TORN_IMAGE
        value, fix = f"{place.image}: {error.what}", error.fix or "copy it or unpack its archive again"
        if not place.image.exists():
            # A dangling link, or a file that was deleted since the folder was looked through.
            what, value, fix = validation.MISSING_IMAGE, str(place.image), "restore the file"
    return None, ValidationIssue(str(place.labels[0]), place.line, what, value, fix)


def _fill(
    content: FrameContent, place: FramePlace, split: str, size: tuple[int, int], lines: Sequence[LabelLine]
) -> None:
    """Fill in the frame and the questions that ``lines`` (at least one) ask about it."""
    frame_id = f"{place.source}/{place.sequence}/{place.frame}"
    groups, several = merge_answers(lines)
    objects, disagreeing = derive_objects(lines)
    content.warnings += several + disagreeing
    content.frame = Frame(frame_id, place.relative, *size, sha256="", objects=objects)
    for group in groups:
        first = group[0]
        # Where one answer has a box and another has none, nothing says where the latter would be right.
        for line in group:
            if bool(line.boxes) != bool(first.boxes):
                value, fix = shown(line.question), "give each of its answers a box, or none"
                content.leave_out(ValidationIssue(str(line.path), line.line, validation.MIXED_BOXES, value, fix))
        accepted = [pair for line in group if bool(line.boxes) == bool(first.boxes) for pair in line.accepted]
        content.samples.append(
            Sample(
                id=f"{frame_id}/{first.index}",
                source=place.source,
                split=split,
                sequence=place.sequence,
                frame=place.frame,
                image=place.relative,
                width=size[0],
                height=size[1],
                question=first.question,
                kind=first.kind,
                subject=first.subject,
                answer=first.answer,
                box_px=accepted[0][1],
                answers_accepted=tuple(answer for answer, _ in accepted) if len(accepted) > 1 else (),
                boxes_accepted=tuple(box for _, box in accepted) if len(accepted) > 1 else (),
            )
        )
