"""Questions of a dataset as a model that was not trained here is asked them, with examples out of train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from surgery_r1.codec import View
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.native.boxes import NativeBoxes
from surgery_r1.evaluate.native.wording import NATIVE_VERSION, NativePrompt, read_native
from surgery_r1.records import Sample


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """How a model that was not trained here is asked.

    Attributes:
        boxes: how it writes boxes.
        few_shot: examples before each question, out of the training split.
        reasoning: ask for a rationale too.
        max_new_tokens: upper bound of a reply, in tokens.
        batch_size: conversations per batch of a model in this process.
    """

    boxes: NativeBoxes
    few_shot: int = 0
    reasoning: bool = True
    max_new_tokens: int = 256
    batch_size: int = 1


class NativeQuestions:
    """Conversations about samples, and what is read of the replies.

    Args:
        view_of: the size of a frame, width and height -> how the model sees it.

    Raises:
        SurgeryR1Error: for examples that the training split does not have, or of the split that is asked.
    """

    def __init__(self, dataset: Dataset, split: str, options: NativeOptions, view_of: Callable[[int, int], View]):
        if options.few_shot and split == "train":
            raise SurgeryR1Error("--few-shot takes its examples from train, which is asked", fix="give another --split")
        self._dataset, self._options, self._view_of = dataset, options, view_of
        self._train = dataset.split("train") if options.few_shot else []
        kinds = {(s.source, s.kind, s.box_px is not None) for s in dataset.split(split)} if options.few_shot else set()
        self._examples = {key: self._examples_of(*key) for key in sorted(kinds)}
        self.prompt = lru_cache(maxsize=64)(self._prompt)

    def asked(self, constraint: str) -> dict[str, Any]:
        """What a reply depends on beside model and frames: one key of every line."""
        examples = [[sample.id for sample in found] for found in self._examples.values()]
        return {
            "prompt": f"native {NATIVE_VERSION}",
            "boxes": str(self._options.boxes),
            "reasoning": self._options.reasoning,
            "few_shot": self._options.few_shot,
            "examples_sha256": hashlib.sha256(json.dumps(examples).encode()).hexdigest() if examples else None,
            "constraint": constraint,
        }

    def prompt_of(self, sample: Sample) -> NativePrompt:
        """The prompt of a sample."""
        prompt: NativePrompt = self.prompt(sample.question, sample.source, sample.kind, sample.box_px is not None)
        return prompt

    def _prompt(self, question: str, source: str, kind: str, has_box: bool) -> NativePrompt:
        answers = self._dataset.answers[source].get(kind) or self._dataset.classes
        return NativePrompt(question, answers, self._options.boxes if has_box else None, self._options.reasoning)

    def conversation(self, sample: Sample, image: Callable[[Path, View], dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages: the examples with their replies, then the question.

        Args:
            image: path of a frame, and how the model sees it -> the part of a message that shows it.
        """
        messages = []
        for example in self._examples.get((sample.source, sample.kind, sample.box_px is not None), ()):
            messages.append(self._question(example, image))
            text = self.prompt_of(example).reply(
                example.answer, example.box_px, self._rationale(example), self.view(example)
            )
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return [*messages, self._question(sample, image)]

    def view(self, sample: Sample) -> View:
        """How the model sees the frame of a sample."""
        return self._view_of(sample.width, sample.height)

    def _question(self, sample: Sample, image: Callable[[Path, View], dict[str, Any]]) -> dict[str, Any]:
        view = self.view(sample)
        shown = image(self._dataset.image_path(sample), view)
        return {"role": "user", "content": [shown, {"type": "text", "text": self.prompt_of(sample).text(view)}]}

    def line(self, sample: Sample, reply: str, *, cut_off: bool = False) -> dict[str, Any]:
        """What the line of a sample holds: answer, box in source pixels, rationale, problems, and the reply itself."""
        view = self.view(sample)
        read = read_native(reply, self.prompt_of(sample), view)
        problems = [*read.problems, *(["cut_off"] if cut_off else [])]
        line: dict[str, Any] = {"answer": read.answer, "box_px": read.box_px and list(read.box_px)}
        if read.rationale is not None:
            line["reasoning"] = read.rationale
        return {**line, "reply": reply, "reply_problems": problems, **_SOURCE_PIXELS, **_seen(view)}

    def _examples_of(self, source: str, kind: str, has_box: bool) -> tuple[Sample, ...]:
        """Training samples of a kind, of as many answers and frames as there are; the same for every question."""
        of_answer: dict[str, list[Sample]] = {}
        # A source that has no training split (EndoVis-17) borrows from those that have one.
        borrows = source not in {sample.source for sample in self._train}
        for sample in self._train:
            if (borrows or sample.source == source) and sample.kind == kind and self._can_show(sample, has_box):
                of_answer.setdefault(sample.answer, []).append(sample)
        # The most common answers first; of each the one in the middle, then those beside it.
        queues = [_from_the_middle(found) for found in sorted(of_answer.values(), key=len, reverse=True)]
        chosen: list[Sample] = []
        while len(chosen) < self._options.few_shot and any(queues):
            for queue in queues:
                frames = {sample.frame_id for sample in chosen}
                fresh = next((sample for sample in queue if sample.frame_id not in frames), None)
                queue[:] = queue[queue.index(fresh) + 1 :] if fresh is not None else []
                if fresh is not None and len(chosen) < self._options.few_shot:
                    chosen.append(fresh)
        if len(chosen) < self._options.few_shot:
            with_rationale = " with a rationale" if self._options.reasoning else ""
            raise SurgeryR1Error(
                f"--few-shot {self._options.few_shot}: train has {len(chosen)} frames with a {kind} question"
                f"{with_rationale}",
                where=self._dataset.root,
                fix="give fewer, or --no-reasoning where the dataset has no rationales",
            )
        return tuple(chosen)

    def _can_show(self, sample: Sample, has_box: bool) -> bool:
        has_rationale = not self._options.reasoning or self._rationale(sample) is not None
        return has_rationale and (sample.box_px is not None) == has_box

    def _rationale(self, sample: Sample) -> str | None:
        rows = self._dataset.rows_of.get(sample.id, ())
        return next((row.reasoning for row in rows if row.reasoning), None)


#: Boxes have been converted: nothing is left to ask of their units.
_SOURCE_PIXELS = {"box_space": "source", "box_format": "xyxy", "box_origin": 0}


def _seen(view: View) -> dict[str, int]:
    return {"input_width": view.input_width, "input_height": view.input_height} if view.input_width else {}


def _from_the_middle(samples: Sequence[Sample]) -> list[Sample]:
    middle = len(samples) // 2
    return [*samples[middle:], *samples[:middle]]
