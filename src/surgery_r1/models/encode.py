"""Prompts and images to model inputs. Each image of a batch is read and resized once, however many prompts show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from surgery_r1 import prompts
from surgery_r1._util.byte_cache import ByteCache
from surgery_r1._util.images import opened_image
from surgery_r1.data.colours import seen_as
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.processor import view_of
from surgery_r1.models.sharing.prefill import ImagePatches, PromptTokens


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """An image that lies in memory and not on disk; each is one of its own, whatever it shows."""

    image: Image.Image


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to a model: one or more images and the text that follows them.

    Attributes:
        reply_start: put in the model's mouth: it goes on from there. See :func:`surgery_r1.codec.begin`.
    """

    images: tuple[Path | MemoryImage, ...]
    text: str
    reply_start: str = ""


def load_image(path: Path | MemoryImage) -> Image.Image:
    """An image as RGB, from disk or from memory.

    Raises:
        SurgeryR1Error: when it is missing, too large or too long, or cannot be decoded.
    """
    if isinstance(path, MemoryImage):
        return path.image.convert("RGB")
    with opened_image(path) as image:
        return image.convert("RGB")


def image_dimensions(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the image's header alone; errors as in :func:`load_image`."""
    with opened_image(path) as image:
        return image.size


def _dimensions(image: Path | MemoryImage) -> tuple[int, int]:
    return image.image.size if isinstance(image, MemoryImage) else image_dimensions(image)


class ImageCache:
    """Decoded images, the least recently used dropped beyond ``limit`` bytes of pixels.

    Kept as they lie on disk: to flip one costs little beside decoding it, and flipped copies would push others out.
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self._images = ByteCache[str, Image.Image](limit, lambda image: 3 * image.width * image.height)

    def __call__(self, path: str | Path, look: str = "none") -> Image.Image:
        """The image at ``path`` as RGB (see :func:`load_image`).

        Args:
            look: how it is flipped and coloured, see :func:`surgery_r1.data.colours.look`.
        """
        key = str(path)
        image = self._images.get(key)
        if image is None:
            image = self._images[key] = load_image(Path(path))
        return seen_as(look, image)


def expand_images(text: str, grids: Sequence[Any], processor: Any) -> str:
    """Rendered chat text with each image placeholder repeated once for every token of its image.

    Args:
        grids: (temporal, height, width) in patches of each image, in order.

    Raises:
        SurgeryR1Error: when placeholders and images differ in number.
    """
    token, merge = processor.image_token, processor.image_processor.merge_size**2
    head, *tail = text.split(token)
    if len(tail) != len(grids):
        raise SurgeryR1Error(
            f"the chat template wrote {len(tail)} image placeholders for {len(grids)} images",
            fix="use the chat template of the model's own folder",
        )
    counts = [int(grid.prod()) // merge for grid in grids]
    return head + "".join(token * n + piece for n, piece in zip(counts, tail, strict=True))


class PromptEncoder:
    """Encodes prompts with a model's own processor, chat template and pixel limits.

    Args:
        processor: from :func:`surgery_r1.models.processor.load_processor`.
        box_space: units that the system text names.
    """

    def __init__(self, processor: Any, box_space: str) -> None:
        self.processor = processor
        self.box_space = box_space
        self._chat = lru_cache(maxsize=4096)(self._render)
        self._text_length = lru_cache(maxsize=4096)(self._count_text)

    def _render(self, text: str, images: int, reply_start: str = "") -> str:
        for what, written in (("question", text), ("start of the reply", reply_start)):
            control = next((token for token in self.processor.tokenizer.all_special_tokens if token in written), None)
            if control is not None:
                raise SurgeryR1Error(f"the {what} holds the control token {control}", fix="leave it out")
        chat = self.processor.apply_chat_template(
            prompts.messages(text, self.box_space, images), tokenize=False, add_generation_prompt=True
        )
        return str(chat) + reply_start

    def __call__(self, batch: Sequence[Prompt]) -> dict[str, Any]:
        """Left-padded tensors for ``generate``: input_ids and attention_mask (batch, length), pixel_values, grids.

        Raises:
            SurgeryR1Error: for an image that is missing or torn, or a question that holds a control token.
        """
        prompts, images = self.tokens(batch)
        encoded = self.processor.tokenizer.pad(
            {"input_ids": [prompt.ids for prompt in prompts]}, padding=True, padding_side="left", return_tensors="pt"
        )
        shown = [images[key] for prompt in prompts for key in prompt.images]
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (encoded["input_ids"] == self.processor.image_token_id).int(),
            "pixel_values": torch.cat([image.patches for image in shown]),
            "image_grid_thw": torch.stack([image.grid for image in shown]),
        }

    def token_count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with every image expanded; no image is decoded.

        Raises:
            SurgeryR1Error: as above.
        """
        image = self.processor.image_processor
        side = image.patch_size * image.merge_size
        views = [view_of(self.processor, *_dimensions(shown)) for shown in prompt.images]
        # Each image's placeholder is one of the tokens of the text.
        added = sum((view.input_width // side) * (view.input_height // side) - 1 for view in views)
        return self._text_length(prompt.text, len(prompt.images), prompt.reply_start) + added

    def _count_text(self, text: str, images: int, reply_start: str) -> int:
        return len(self._text_ids(text, images, reply_start))

    def _text_ids(self, text: str, images: int, reply_start: str) -> list[int]:
        chat = self._chat(text, images, reply_start)
        ids: list[int] = self.processor.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return ids

    def unexpanded(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt with one for each image, for engines that expand images themselves.

        Raises:
            SurgeryR1Error: for a question that holds a control token.
        """
        return self._text_ids(prompt.text, len(prompt.images), prompt.reply_start)

    def tokens(self, batch: Sequence[Prompt]) -> tuple[list[PromptTokens], dict[Any, ImagePatches]]:
        """Tokens of each prompt, and each distinct image of the batch once.

        Raises:
            SurgeryR1Error: as above.
        """
        unique = list(dict.fromkeys(path for prompt in batch for path in prompt.images))
        processed = self.processor.image_processor(images=[load_image(image) for image in unique], return_tensors="pt")
        grids = processed["image_grid_thw"]
        patches = torch.split(processed["pixel_values"], grids.prod(-1).tolist())
        images = {path: ImagePatches(*parts) for path, *parts in zip(unique, patches, grids, strict=True)}
        chats = [self._chat(p.text, len(p.images), p.reply_start) for p in batch]
        texts = [
            expand_images(chat, [images[path].grid for path in prompt.images], self.processor)
            for chat, prompt in zip(chats, batch, strict=True)
        ]
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [PromptTokens(row, prompt.images) for row, prompt in zip(ids, batch, strict=True)], images
