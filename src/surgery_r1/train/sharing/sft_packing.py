"""SFT rows of a frame behind one copy of it: a collator in front of TRL's SFTTrainer.

The rows of a pack become one prefix tree (:mod:`surgery_r1.models.sharing.prefix_tree`): system text and frame stand
once, and what follows them in a row stands in a branch of its own. The loss of a batch of packs is that of the same
rows in a plain batch, to rounding (``tests/test_sft_packing.py``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cachetools import LRUCache

from surgery_r1 import prompts
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.encode import expand_images, image_dimensions
from surgery_r1.models.processor import view_of
from surgery_r1.models.sharing import prefix_tree
from surgery_r1.train.datasets import lazy

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset

    from surgery_r1.train.config import TrainConfig


def pack_rows(rows: HFDataset, per_frame: int, seed: int = 0) -> HFDataset:
    """Rows of the same images, flipped alike, in packs of at most ``per_frame``; every row is in one pack.

    Args:
        rows: from :func:`surgery_r1.train.datasets.sft_dataset`.

    Returns:
        A dataset with columns images and flips, and for each row of a pack prompt (user text), completion (reply),
        shown (which of the images) and frame (their paths, for messages).
    """
    plain = rows.with_format(None)
    frames: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]] = {}
    parts = (plain[name] for name in ("images", "flips", "prompt", "completion"))
    for images, flips, prompt, completion in zip(*parts, strict=True):
        shown = tuple(zip(images, flips, strict=True))
        frames.setdefault(shown, []).append((prompt[-1]["content"], completion[0]["content"]))
    rng = random.Random(seed)
    packs = []
    for frame, pairs in frames.items():
        images, flips = (list(values) for values in zip(*frame, strict=True))
        rng.shuffle(pairs)
        for start in range(0, len(pairs), per_frame):
            pack = pairs[start : start + per_frame]
            texts = {"prompt": [prompt for prompt, _ in pack], "completion": [completion for _, completion in pack]}
            images_of = {"shown": [list(range(len(images)))] * len(pack), "frame": [", ".join(images)] * len(pack)}
            packs.append({"images": images, "flips": flips, **texts, **images_of})
    return lazy(packs)


def fill_packs(packs: HFDataset, sizes: Sequence[int], budget: int, seed: int = 0) -> HFDataset:
    """Packs joined, in random order, into larger ones of at most ``budget`` tokens.

    Args:
        packs: from :func:`pack_rows`.
        sizes: tokens of each pack.

    Raises:
        SurgeryR1Error: when a pack alone is larger.
    """
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    if sizes[largest] > budget:
        images = packs.with_format(None)[largest]["images"]
        raise SurgeryR1Error(
            f"sft.pack_tokens = {budget} is less than the {sizes[largest]} tokens of one frame's rows",
            where=", ".join(images),
            fix=f"raise it to {sizes[largest]} or more, or lower sft.rows_per_frame",
        )
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    plain = packs.with_format(None)
    joined: list[dict[str, list[Any]]] = []
    room = -1
    for number in order:
        pack = plain[number]
        if sizes[number] > room:
            joined.append({name: [] for name in pack})
            room = budget
        room -= sizes[number]
        first = len(joined[-1]["images"])
        pack["shown"] = [[first + image for image in shown] for shown in pack["shown"]]
        for name, values in joined[-1].items():
            values.extend(pack[name])
    return lazy(joined)


class FramePackCollator:
    """Packs to one packed sequence of N tokens.

    Args:
        processor: of the model.
        system: the constant system text.
        get_rope_index: the model's.
    """

    def __init__(self, processor: Any, system: str, get_rope_index: Any) -> None:
        self.processor = processor
        self.system = system
        merge = processor.image_processor.merge_size
        self.positions = prefix_tree.SequencePositions(get_rope_index, processor.image_token_id, merge)
        self._heads = LRUCache[tuple[str, tuple[int, ...]], np.ndarray](4096)

    def __call__(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate.

        Returns:
            input_ids, labels and shift_labels (both what follows a token) and attention_mask (1, N), position_ids
            (3, 1, N), pixel_values and image_grid_thw of the images in the sequence, and the layout ``tree``.

        Raises:
            SurgeryR1Error: when two rows of the same images differ before the end of their images.
        """
        processed = self.processor.image_processor(
            images=[image for pack in packs for image in pack["images"]], return_tensors="pt"
        )
        grids = processed["image_grid_thw"]
        rows, first = [], 0
        for pack in packs:
            rows += self._rows(pack, first, grids)
            first += len(pack["images"])
        tree = prefix_tree.build_prefix_tree(rows, self.processor.image_token_id)
        inputs = prefix_tree.tree_inputs(tree, rows, [self.positions(row, grids[list(row.images)]) for row in rows])
        shown = [rows[row].images[number] for row, number in tree.images]
        patches = list(torch.split(processed["pixel_values"], grids.prod(-1).tolist()))
        return {
            **inputs,
            # Trainers look for labels to count them.
            "labels": inputs["shift_labels"],
            "pixel_values": torch.cat([patches[image] for image in shown]),
            "image_grid_thw": grids[shown],
        }

    def size(self, pack: dict[str, Any], grids: torch.Tensor) -> int:
        """Tokens of a pack.

        Args:
            grids: (images, 3) of the pack's images.
        """
        return prefix_tree.build_prefix_tree(self._rows(pack, 0, grids), self.processor.image_token_id).layout.size

    def _rows(self, pack: dict[str, Any], first: int, grids: torch.Tensor) -> list[prefix_tree.TokenSequence]:
        """The rows of a pack; its images are numbered from ``first``."""
        rows = []
        begins: dict[tuple[int, ...], np.ndarray] = {}
        replies = self._encode([completion + "<|im_end|>\n" for completion in pack["completion"]])
        for prompt, reply, shown, frame in zip(pack["prompt"], replies, pack["shown"], pack["frame"], strict=True):
            images = tuple(first + image for image in shown)
            head = self._head(prompt, grids[list(images)])
            unscored = np.full(len(head) - 1, prefix_tree.IGNORE)
            labels = np.concatenate([unscored, reply, unscored[:1]])
            begin = head[: 1 + int(np.flatnonzero(head == self.processor.image_token_id)[-1])]
            if not np.array_equal(begins.setdefault(images, begin), begin):
                raise SurgeryR1Error(
                    f"rows of one frame differ before the end of the image: {prompt!r}",
                    where=frame,
                    fix="the chat template must put the image before the question",
                )
            ids = np.concatenate([head, reply])
            rows.append(prefix_tree.TokenSequence(ids, labels, images, f"{prompt!r} of {frame}"))
        return rows

    def _head(self, prompt: str, grids: torch.Tensor) -> np.ndarray:
        """Tokens up to the reply, kept: a question comes again with every frame of the same size."""
        key = prompt, tuple(grids.prod(-1).tolist())
        if key not in self._heads:
            messages = prompts.chat_messages(self.system, prompt, len(grids))
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            (self._heads[key],) = self._encode([expand_images(text, list(grids), self.processor)])
        return self._heads[key]

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids) for ids in self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]


class PlainPackCollator(FramePackCollator):
    """The rows of packs as a plain padded batch, for models whose layers cannot share a frame. TRL's own collator."""

    def __call__(self, packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What TRL's collator makes of the rows."""
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        system = {"role": "system", "content": self.system}
        rows = [
            {
                "prompt": [system, {"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": completion}],
                "images": [pack["images"][image] for image in shown],
            }
            for pack in packs
            for prompt, completion, shown in zip(pack["prompt"], pack["completion"], pack["shown"], strict=True)
        ]
        return DataCollatorForVisionLanguageModeling(self.processor, completion_only_loss=True)(rows)


def packed(rows: HFDataset, collator: FramePackCollator, config: TrainConfig) -> HFDataset:
    """The packs of ``rows`` that ``[sft]`` asks for."""
    packs = pack_rows(rows, config.sft.rows_per_frame, config.seed)
    if not config.sft.pack_tokens:
        return packs
    sizes = []
    for pack in packs.with_format(None):
        grids = torch.from_numpy(image_grids(pack["images"], collator.processor))
        sizes.append(collator.size(pack, grids))
    return fill_packs(packs, sizes, config.sft.pack_tokens, config.seed)


def image_grids(paths: Sequence[str], processor: Any) -> np.ndarray:
    """(images, 3): temporal, height and width in patches of each image, from its header alone."""
    patch = processor.image_processor.patch_size
    grids = []
    for path in paths:
        view = view_of(processor, *image_dimensions(Path(path)))
        grids.append((1, view.input_height // patch, view.input_width // patch))
    return np.array(grids)
