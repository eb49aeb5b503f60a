"""Tokens of the data's rows, as training will pack them: how long a pass can be, counted before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from surgery_r1 import prompts
from surgery_r1.models.processor import view_of
from surgery_r1.train.planning.passes import Shape
from surgery_r1.train.sharing.sft_packing import FramePackCollator, image_grids, pack_rows, packed

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset

    from surgery_r1.data.dataset import Dataset
    from surgery_r1.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Unit:
    """What a pass takes whole: a row, a pack of rows, or a question with all its completions.

    Attributes:
        frame: tokens up to the end of the image.
        text: computed tokens behind it.
        scored: of these, those with a label.
        image: which frame, so that neighbours of the same one are seen.
    """

    frame: int
    text: int
    scored: int
    image: str

    @property
    def tokens(self) -> int:
        return self.frame + self.text


@dataclass(frozen=True)
class Rows:
    """All units of a stage, and how a pass is made of them.

    Attributes:
        units: in the order of the dataset.
        rows_each: rows of a unit where they are computed one by one (completions of a question).
        shared: a pass is one packed sequence.
        neighbours: units of one frame that follow each other share it.
        trunk: tokens in front of every image, which a packed sequence has once.
        image_tokens: image tokens of a frame -> frames that have so many.
    """

    units: tuple[Unit, ...]
    rows_each: int
    shared: bool
    neighbours: bool
    trunk: int
    image_tokens: dict[int, int]

    def largest_pass(self, units: int) -> Shape:
        """The most that a pass of so many units can hold: rows and tokens, and scored positions."""
        scored = sum(sorted((unit.scored for unit in self.units), reverse=True)[:units])
        if not self.shared:
            longest = max(unit.tokens for unit in self.units)
            return Shape(units * self.rows_each, longest, scored, False)
        if self.neighbours:
            at = range(max(1, len(self.units) - units + 1))
            length = max(self._joined(self.units[start : start + units]) for start in at)
        else:
            largest = sorted((unit.tokens for unit in self.units), reverse=True)[:units]
            length = sum(largest) - (len(largest) - 1) * self.trunk
        return Shape(1, length, scored, True)

    def _joined(self, units: Sequence[Unit]) -> int:
        """Tokens of a prefix tree of units, where those of one frame share it."""
        frames = {unit.image: unit.frame - self.trunk for unit in units}
        return self.trunk + sum(frames.values()) + sum(unit.text for unit in units)


def sft_units(rows: HFDataset, config: TrainConfig, processor: Any, share: bool) -> tuple[Unit, ...]:
    """Packs of ``rows`` as :func:`surgery_r1.train.sft.train_sft` makes them, or single rows.

    Args:
        share: packs become one sequence; else each row stands alone and a pack of them is padded to its longest.
    """
    collator = FramePackCollator(processor, rows.with_format(None)[0]["prompt"][0]["content"], None)
    packs = packed(rows, collator, config) if config.sft.rows_per_frame else pack_rows(rows, 1)
    count = _counter(processor)
    units = []
    for pack in packs.with_format(None):
        grids = torch.from_numpy(image_grids(pack["images"], processor))
        scored = sum(count(reply + "<|im_end|>\n") for reply in pack["completion"])
        image = ", ".join(pack["images"])
        if share and config.sft.rows_per_frame:
            units.append(Unit(0, collator.size(pack, grids), scored, image))
            continue
        # A plain row keeps its last token, which predicts nothing.
        parts = zip(pack["prompt"], pack["completion"], pack["shown"], pack["frame"], strict=True)
        alone = [{"prompt": [p], "completion": [c], "shown": [s], "frame": [f]} for p, c, s, f in parts]
        units.append(Unit(0, 1 + max(collator.size(row, grids) for row in alone), scored, image))
    return tuple(units)


def rft_units(questions: HFDataset, config: TrainConfig, processor: Any, share: bool) -> tuple[Unit, ...]:
    """Questions with all their completions, of the greatest length.

    In a prefix tree a completion's branch begins with the last token of the prompt, which predicts its first one, and
    ends before its last one, which predicts nothing.
    """
    rft = config.rft
    plain = questions.with_format(None)
    split = _splitter(processor)
    scored = rft.generations * rft.max_completion
    units = []
    for prompt, images, flips in zip(plain["prompt"], plain["images"], plain["flips"], strict=True):
        before, behind = split(prompt[0]["content"], prompt[-1]["content"])
        grids = image_grids(images, processor)
        frame = before + int(grids.prod(-1).sum()) // processor.image_processor.merge_size**2
        text = behind - 1 + scored if share else behind + rft.max_completion
        units.append(Unit(frame, text, scored, f"{images} {flips}"))
    return tuple(units)


def trunk(rows: HFDataset, processor: Any) -> int:
    """Tokens in front of the image, the same in all rows."""
    prompt = rows.with_format(None)[0]["prompt"]
    return _splitter(processor)(prompt[0]["content"], prompt[-1]["content"])[0]


def image_tokens(dataset: Dataset, processor: Any) -> dict[int, int]:
    """Image tokens of a frame at the processor's pixel limits -> frames of the training split that have so many."""
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    sizes = {sample.image: (sample.width, sample.height) for sample in dataset.split("train")}
    counts: Counter[int] = Counter()
    for width, height in sizes.values():
        view = view_of(processor, width, height)
        counts[(view.input_width // side) * (view.input_height // side)] += 1
    return dict(sorted(counts.items()))


def _counter(processor: Any) -> Callable[[str], int]:
    """Tokens of a text, counted once."""

    @lru_cache(maxsize=65536)
    def count(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _splitter(processor: Any) -> Callable[[str, str], tuple[int, int]]:
    """Tokens of a prompt before and behind its image, counted once."""

    @lru_cache(maxsize=65536)
    def split(system: str, text: str) -> tuple[int, int]:
        messages = prompts.chat_messages(system, text)
        rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        at = ids.index(processor.image_token_id)
        return at, len(ids) - at - 1

    return split
