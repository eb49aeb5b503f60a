"""While TRL prepares a batch, equal prompts are rendered and tokenised once; TRL does both for every completion."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature


class PromptsOnce:
    """Stands in for a processor; results are those of the real one, of which everything else is asked.

    Prompts are equal when their texts are, and their images are the same objects: it is for one batch, which holds
    its images as long as it lasts.

    Attributes:
        rendered: conversations that the real processor has rendered.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._texts: dict[Hashable, Any] = {}
        self.rendered = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any:
        """As the real one: a conversation, or a list of them."""
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations = conversation if several else [conversation]
        keys = [_key(one) for one in conversations]
        # Texts of single conversations, and tokens of batches, are what TRL asks for; the rest is not looked at.
        tokens = bool(settings.get("tokenize"))
        if None in keys or several is not tokens or (tokens and not settings.get("return_dict")):
            return self._render(conversation, len(conversations), settings)
        if not several:
            key = (keys[0], repr(settings))
            if key not in self._texts:
                self._texts[key] = self._render(conversation, 1, settings)
            return self._texts[key]
        distinct, rows = _numbered(keys)
        done = self._render([conversations[i] for i in distinct], len(distinct), settings)
        return _repeated(done, rows, [_count(conversations[i]) for i in distinct])

    def _render(self, conversation: Any, count: int, settings: dict[str, Any]) -> Any:
        self.rendered += count
        return self._inner.apply_chat_template(conversation, **settings)

    def __call__(self, *args: Any, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """As the real one: texts, each with a list of images."""
        if args or not isinstance(images, list) or not isinstance(text, list) or not all(images):
            return self._inner(*args, images=images, text=text, **settings)
        distinct, rows = _numbered([(t, tuple(map(id, shown))) for t, shown in zip(text, images, strict=True)])
        done = self._inner(images=[images[i] for i in distinct], text=[text[i] for i in distinct], **settings)
        return _repeated(done, rows, [len(images[i]) for i in distinct])


def _key(conversation: Sequence[Mapping[str, Any]]) -> Hashable | None:
    """What a rendered conversation depends on; None where that is not known."""
    parts: list[Hashable] = []
    for message in conversation:
        content = message.get("content")
        if set(message) != {"role", "content"} or not isinstance(content, str | list):
            return None
        parts.append((message["role"], isinstance(content, str)))
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if not set(part) <= {"type", "text", "image"}:
                return None
            parts.append((part["type"], part.get("text"), id(part["image"]) if "image" in part else None))
    return tuple(parts)


def _count(conversation: Sequence[Mapping[str, Any]]) -> int:
    """Images of a conversation."""
    contents = (message["content"] for message in conversation if isinstance(message["content"], list))
    return sum(part["type"] == "image" for content in contents for part in content)


def _numbered(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Where each distinct key stands first, and the number of the distinct key of every place.

    >>> _numbered(["a", "a", "b", "a"])
    ([0, 2], [0, 0, 1, 0])
    """
    number: dict[Hashable, int] = {}
    first: list[int] = []
    for place, key in enumerate(keys):
        if key not in number:
            number[key] = len(first)
            first.append(place)
    return first, [number[key] for key in keys]


def _repeated(done: Mapping[str, Any], rows: Sequence[int], images: Sequence[int]) -> BatchFeature:
    """A processor's output of distinct prompts as that of all ``rows``.

    Args:
        images: how many images each distinct prompt has.
    """

    def parts(values: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        pieces = torch.split(values, list(sizes))
        return torch.cat([pieces[row] for row in rows])

    data: dict[str, Any] = {}
    for name, values in done.items():
        if name == "image_grid_thw":
            data[name] = parts(values, images)
        elif name == "pixel_values":
            patches = [int(grids.prod(-1).sum()) for grids in torch.split(done["image_grid_thw"], list(images))]
            data[name] = parts(values, patches)
        else:
            data[name] = values[list(rows)] if torch.is_tensor(values) else [values[row] for row in rows]
    return BatchFeature(data)
