"""A model that is asked questions: ``surgery_r1.load`` and what it answers."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import prompts, vocab
from surgery_r1.codec import read_reply
from surgery_r1.data.formats.lines import MAX_TEXT
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from surgery_r1.models.encode import MemoryImage
    from surgery_r1.models.load import Bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model replied to one question about one frame. In a notebook it shows itself as a picture.

    Attributes:
        question: as it was asked.
        answer: None where none could be read.
        box_px: (x1, y1, x2, y2), 0-based in pixels of the frame; None where none could be read.
        rationale: None where none was asked for, or none could be read.
        text: the raw text.
        problems: what was wrong with it, codes of :data:`surgery_r1.codec.PROBLEMS`; empty for a sound reply.
        confidence: the model's probability of exactly this answer, see
            :func:`surgery_r1.evaluate.confidence.answer_probability`; None without an answer, or for a sampled reply.
        frame: the frame that was shown.
    """

    question: str
    answer: str | None
    box_px: Box | None
    rationale: str | None
    text: str
    problems: tuple[str, ...] = ()
    confidence: float | None = None
    frame: Image | None = field(default=None, repr=False, compare=False)

    def picture(self) -> Image:
        """The frame with the box drawn into it, answer and question beside it.

        Raises:
            ValueError: when the reply was made without its frame.
        """
        from surgery_r1.report.drawing import draw_boxes

        if self.frame is None:
            raise ValueError("this reply holds no frame")
        answer = self.answer or "no answer"
        return draw_boxes(self.frame, predicted_px=self.box_px, predicted_label=answer, caption=self.question)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, without the frame."""
        return {
            "reasoning": self.rationale,
            "answer": self.answer,
            "box_px": None if self.box_px is None else list(self.box_px),
            "problems": list(self.problems),
            "text": self.text,
        }

    def _repr_png_(self) -> bytes | None:
        """What Jupyter shows."""
        if self.frame is None:
            return None
        data = io.BytesIO()
        self.picture().save(data, "PNG")
        return data.getvalue()


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How a model is asked: see :meth:`Model.ask_many`."""

    reasoning: bool = True
    max_new_tokens: int = 256
    batch_size: int = 16


class Model:
    """A loaded model; see :func:`load`.

    Attributes:
        folder: where its weights lie.
        stage: ``base``, ``sft`` or ``rft``.
    """

    def __init__(self, bundle: Bundle) -> None:
        from surgery_r1.models.sharing.vision_features import keep_frozen_features

        self._bundle = bundle
        self.folder: Path = bundle.folder
        self.stage: str = bundle.info.stage
        self._checked_forms: set[bool] = set()
        # Further questions about a frame need not encode it again.
        self._features = keep_frozen_features(bundle.model)

    @property
    def bundle(self) -> Bundle:
        """Weights, processor and what is known of the model."""
        return self._bundle

    def ask(
        self, image: str | Path | Image, question: str, *, reasoning: bool = True, max_new_tokens: int = 256
    ) -> Reply:
        """Ask one question about one frame, greedily.

        Args:
            image: a path, or a PIL image of any mode.
            question: such as ``Where is bipolar_forceps located?``.
            reasoning: ask for a rationale before answer and box. Turned off only for a model that was trained to
                reply without one too.
            max_new_tokens: upper bound of the reply, in tokens.

        Raises:
            SurgeryR1Error: for a question that is empty, too long or has a control token, a missing or torn image, or
                a form of reply that the model was not trained to give.

        >>> import surgery_r1
        >>> from PIL import Image
        >>> model = surgery_r1.load("tiny")   # the base, which was never taught to answer
        >>> reply = model.ask(Image.new("RGB", (320, 256)), "Where is suction located?", max_new_tokens=4)
        >>> reply.answer is None, reply.question
        (True, 'Where is suction located?')
        """
        return self.ask_many([(image, question)], reasoning=reasoning, max_new_tokens=max_new_tokens)[0]

    def ask_many(
        self,
        questions: Iterable[tuple[str | Path | Image, str]],
        *,
        reasoning: bool = True,
        max_new_tokens: int = 256,
        batch_size: int = 16,
    ) -> list[Reply]:
        """Replies to (image, question) pairs, in their order. Questions on one frame share its prefill.

        Args:
            batch_size: questions that are answered at a time.

        Arguments and errors are otherwise those of :meth:`ask`.

        >>> import surgery_r1
        >>> from PIL import Image
        >>> frame = Image.new("RGB", (320, 256))
        >>> questions = [(frame, "Where is suction located?"), (frame, "What organ is being operated?")]
        >>> len(surgery_r1.load("tiny").ask_many(questions, max_new_tokens=4))
        2
        """
        pairs = [(image, _told(checked_question(question))) for image, question in questions]
        options = AskOptions(reasoning, max_new_tokens, batch_size)
        return self.reply(pairs, options)

    def reply(
        self,
        questions: Sequence[tuple[str | Path | Image, str]],
        options: AskOptions,
        *,
        sampled: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> list[Reply]:
        """Replies to questions as they stand, greedy, or drawn from the model's whole distribution.

        For servers: questions are not told, and :meth:`forget` drops what is kept of frames.

        Args:
            questions: as :func:`checked_question` returns them. One that comes n times is read once.
            sampled: draw at temperature 1.
            stop: asked between tokens; where it says yes, replies end as they are.

        Raises:
            SurgeryR1Error: as :meth:`ask`, for control tokens, images and forms of reply.
        """
        from surgery_r1.evaluate.confidence import answer_probability
        from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
        from surgery_r1.models.encode import Prompt

        self._check_form(options.reasoning)
        shown = _frames([image for image, _ in questions])
        settings = GenerationOptions(options.batch_size, options.max_new_tokens, options.reasoning)
        processor = self._bundle.processor
        engine = TransformersEngine(self._bundle.model, processor, self._bundle.info.box_space, settings)
        texts = [prompts.user_text(question, "cot", options.reasoning) for _, question in questions]
        wanted = [Prompt((frame,), text) for frame, text in zip(shown, texts, strict=True)]
        written = [one for batch in engine.write(wanted, sampled=sampled, stop=stop) for one in batch]
        return [
            read(
                one.text,
                question,
                frame.image,
                self._bundle,
                reasoning=options.reasoning,
                confidence=answer_probability(one, processor.tokenizer),
            )
            for frame, (_, question), one in zip(shown, questions, written, strict=True)
        ]

    def forget(self) -> None:
        """Drop what is kept of frames that were shown."""
        if self._features is not None:
            self._features.forget()

    def _check_form(self, reasoning: bool) -> None:
        from surgery_r1.models.reply_forms import check_reply_form

        if reasoning not in self._checked_forms:
            check_reply_form(self._bundle.info, reasoning, self.folder)
            self._checked_forms.add(reasoning)


def read(
    text: str,
    question: str,
    frame: Image,
    bundle: Bundle,
    *,
    reasoning: bool,
    confidence: float | None = None,
) -> Reply:
    """What a model wrote about a frame, as a reply.

    Args:
        bundle: of the model; its weights need not be here.
        reasoning: whether a rationale was asked for: where none was, its absence is no problem.
    """
    from surgery_r1.models.processor import view_of

    found = read_reply(text, bundle.info.box_space, view_of(bundle.processor, *frame.size))
    problems = tuple(code for code in found.problems if reasoning or code != "no_reasoning")
    return Reply(question, found.answer, found.box_px, found.rationale, text, problems, confidence, frame)


def _frames(images: Iterable[str | Path | Image]) -> list[MemoryImage]:
    """Images as prompts take them. A path or an image object that comes again is read once, and is the same frame."""
    from surgery_r1.models.encode import MemoryImage, load_image

    sources = [Path(image) if isinstance(image, str | Path) else MemoryImage(image) for image in images]
    keys = [source if isinstance(source, Path) else id(source.image) for source in sources]
    read = {key: MemoryImage(load_image(source)) for key, source in dict(zip(keys, sources, strict=True)).items()}
    return [read[key] for key in keys]


def load(model: str | Path, *, device: str | None = None, dtype: str = "auto", allow_hub: bool = False) -> Model:
    """Load a model to ask it questions.

    Args:
        model: a run folder (its best model), a model folder, ``tiny`` (the shipped base, which was never taught to
            answer), or a hub name with ``allow_hub``.
        device: such as ``cuda``; None takes CUDA where there is one.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        allow_hub: fetch the model from the hub where it is not on this machine.

    Raises:
        SurgeryR1Error: when there is no such model, it cannot be read, or what runs models is not installed.

    >>> load("tiny").stage
    'base'
    """
    from surgery_r1._util.extras import extras_named
    from surgery_r1._util.offline import stay_offline

    stay_offline(allow_hub)
    with extras_named():
        from surgery_r1.models.load import from_pretrained

        return Model(from_pretrained(model, device=device, dtype=dtype, allow_hub=allow_hub))


def checked_question(question: str) -> str:
    """The question without blanks around it.

    Raises:
        SurgeryR1Error: for one that is empty or endless.
    """
    question = question.strip()
    if not question:
        raise SurgeryR1Error("the question is empty", fix='ask for instance "What organ is being operated?"')
    if len(question) > MAX_TEXT:
        raise SurgeryR1Error(
            f"a question of {len(question):,} characters", fix=f"ask in at most {MAX_TEXT:,}, as label files are read"
        )
    return question


def _told(question: str) -> str:
    """The question; that its form is not known is told."""
    if vocab.classify_question(question)[0] is None:
        logger.warning(
            "%r has none of the forms of EndoVis-VQLA (%s): a model that was trained on those was never asked such a "
            "question",
            question,
            ", ".join(vocab.QUESTION_EXAMPLES),
        )
    return question
