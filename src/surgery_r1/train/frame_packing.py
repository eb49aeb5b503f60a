"""SFT rows of a frame behind one copy of it: a collator in front of TRL's SFTTrainer.

A row repeats the system text and its frame; in a pack they stand once, and every row's question and reply follows in a
branch that sees them and itself alone, at the positions it would have on its own. Loss and gradients are those of the
same rows in a plain batch, to rounding (``tests/test_frame_packing.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from surgery_r1 import prompts
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.encode import expand_images
from surgery_r1.train.data import lazy

if TYPE_CHECKING:
    import torch
    from datasets import Dataset as HFDataset


def pack_rows(rows: HFDataset, per_pack: int, seed: int = 0) -> HFDataset:
    """Rows of the same images in packs of at most ``per_pack``; every row is in one pack.

    Args:
        rows: from :func:`surgery_r1.train.data.sft_dataset`.

    Returns:
        A dataset with columns images, prompt (the user texts) and completion (the replies) of each pack.
    """
    plain = rows.with_format(None)
    frames: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for images, prompt, completion in zip(plain["images"], plain["prompt"], plain["completion"], strict=True):
        frames.setdefault(tuple(images), []).append((prompt[-1]["content"], completion[0]["content"]))
    rng = random.Random(seed)
    columns: dict[str, list[Any]] = {"images": [], "prompt": [], "completion": []}
    for images, pairs in frames.items():
        rng.shuffle(pairs)
        for start in range(0, len(pairs), per_pack):
            pack = pairs[start : start + per_pack]
            columns["images"].append(list(images))
            columns["prompt"].append([prompt for prompt, _ in pack])
            columns["completion"].append([completion for _, completion in pack])
    return lazy(columns)


class FramePackCollator:
    """Packs to tensors: input_ids and labels (packs, L), a mask (packs, 1, L, L), positions (3, packs, L), pixels.

    Args:
        processor: of the model.
        system: the constant system text.
        positions: the model's ``get_rope_index``.
    """

    def __init__(self, processor: Any, system: str, positions: Callable[..., Any]) -> None:
        self.processor = processor
        self.system = system
        self.positions = positions
        ids = processor.tokenizer.convert_tokens_to_ids
        self.image_end = ids("<|vision_end|>")

    def __call__(self, packs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate.

        Raises:
            SurgeryR1Error: when two rows of a pack differ before the end of their image.
        """
        import torch

        image = self.processor.image_processor(
            images=[i for pack in packs for i in pack["images"]], return_tensors="pt"
        )
        grids = iter(image["image_grid_thw"])
        trees = [self._tree(pack, [next(grids) for _ in pack["images"]]) for pack in packs]
        length = max(len(tree[0]) for tree in trees)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((len(packs), length), pad)
        labels = torch.full((len(packs), length), -100)
        branch = torch.full((len(packs), length), -1)
        positions = torch.zeros((3, len(packs), length), dtype=torch.long)
        for i, (tokens, targets, branches, places) in enumerate(trees):
            size = len(tokens)
            ids[i, :size], labels[i, :size], branch[i, :size] = tokens, targets, branches
            positions[:, i, :size] = places
        order = torch.arange(length)
        sees = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        mask = sees & (order[:, None] >= order) & (branch[:, None, :] >= 0)
        # Padding sees itself, or its softmax would run over nothing.
        mask |= torch.eye(length, dtype=torch.bool)
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask[:, None],
            "position_ids": positions,
            "pixel_values": image["pixel_values"],
            "image_grid_thw": image["image_grid_thw"],
        }

    def _tree(self, pack: dict[str, Any], grids: list[Any]) -> tuple[Any, Any, Any, Any]:
        """Tokens, labels, branch numbers (0: shared) and positions of one pack."""
        import torch

        rows = []
        for prompt, completion in zip(pack["prompt"], pack["completion"], strict=True):
            messages = prompts.conversation(self.system, prompt, len(grids))
            head = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            rows.append(
                (self._encode(expand_images(head, grids, self.processor)), self._encode(completion + "<|im_end|>\n"))
            )
        shared = len(rows[0][0]) - rows[0][0][::-1].index(self.image_end)
        trunk = rows[0][0][:shared]
        if any(head[:shared] != trunk for head, _ in rows):
            raise SurgeryR1Error(
                f"rows of one frame differ before the end of the image: {pack['prompt'][:2]}",
                fix="the chat template must put the image before the question",
            )
        tokens, targets, branches = [*trunk], [-100] * shared, [0] * shared
        places: list[torch.Tensor] = []
        for number, (head, reply) in enumerate(rows, start=1):
            tokens += head[shared:] + reply
            targets += [-100] * (len(head) - shared) + reply
            branches += [number] * (len(head) - shared + len(reply))
            ids = torch.tensor([head + reply])
            types = (ids == self.processor.image_token_id).int()
            place, _ = self.positions(ids, types, image_grid_thw=torch.stack(grids))
            places.append(place[:, 0, shared:] if places else place[:, 0])
        return torch.tensor(tokens), torch.tensor(targets), torch.tensor(branches), torch.cat(places, 1)

    def _encode(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
