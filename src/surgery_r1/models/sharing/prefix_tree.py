"""Rows that begin alike, computed once: a prefix tree of token branches in one packed sequence (ours).

Rows of one frame begin with the same system text and the same image tokens, completions of one question with the same
prompt. :func:`build_prefix_tree` finds what rows share and lays the branches out depth first, so that the tokens that
descend from a node are one run of the sequence. Each token sees its ancestors and, of its own branch, what stands
before it and itself, at the positions that its row has on its own. Log-probabilities and gradients are those of the
rows computed one by one, to rounding; ``tests/test_prefix_tree.py`` holds it to that.

:mod:`surgery_r1.models.sharing.attention` is the attention over such a sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from cachetools import LRUCache

from surgery_r1.errors import SurgeryR1Error

#: Label of a token after which nothing is scored.
IGNORE = -100

#: Rows part where they have fewer equal tokens than this: a short node costs more than it saves.
MIN_SHARED = 8


class TokenSequence(NamedTuple):
    """One row as a trainer would compute it alone.

    Attributes:
        ids: tokens, (L,).
        labels: the token to predict after each token, IGNORE where none is scored, (L,).
        images: a key for each image of the row in order; equal keys mean equal features.
        name: what error messages call the row.
    """

    ids: Sequence[int] | np.ndarray
    labels: Sequence[int] | np.ndarray
    images: Sequence[Any] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Nodes of a prefix tree in depth-first order.

    Attributes:
        spans: (start, stop, end) of each node: its own tokens are start..stop, its descendants stop..end.
    """

    spans: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """Tokens of the packed sequence."""
        return max(end for _, _, end in self.spans)


@dataclass(frozen=True)
class PrefixTree:
    """Rows packed into one sequence of N tokens.

    Attributes:
        pieces: (row, start, stop) of each node in depth-first order: the tokens are those of this row.
        layout: where the nodes lie in the sequence.
        index: for each row the places of its tokens in the sequence, (tokens kept,). What stands behind a row's last
            label predicts nothing and is left out.
        images: (row, number of the image in the row) of the images in the sequence, in order.
    """

    pieces: tuple[tuple[int, int, int], ...]
    layout: TreeLayout
    index: tuple[np.ndarray, ...]
    images: tuple[tuple[int, int], ...]

    def pack(self, values: Sequence[Any]) -> torch.Tensor:
        """One value a token of each row, (..., L) each, to the sequence, (..., N)."""
        return torch.cat([torch.as_tensor(values[row])[..., start:stop] for row, start, stop in self.pieces], -1)

    def unpack(self, values: torch.Tensor, row: int) -> torch.Tensor:
        """Values of the sequence, (..., N), at the tokens of a row, (..., tokens kept)."""
        return values[..., torch.as_tensor(self.index[row], device=values.device)]


def build_prefix_tree(rows: Sequence[TokenSequence], image_token: int, *, min_shared: int = MIN_SHARED) -> PrefixTree:
    """The prefix tree of ``rows``. A token with a label, and what stands behind it, belongs to its row alone.

    Args:
        image_token: the token that stands for a piece of an image.
        min_shared: the shortest beginning that rows share.

    Raises:
        SurgeryR1Error: when a row's images and its runs of image tokens differ in number.

    >>> rows = [TokenSequence([1, 2, 3, 4], [-100, -100, 4, -100]), TokenSequence([1, 2, 3, 5], [-100, -100, 5, -100])]
    >>> tree = build_prefix_tree(rows, image_token=0, min_shared=1)
    >>> tree.layout.spans, tree.pack([row.ids for row in rows]).tolist(), tree.index[1].tolist()
    (((0, 2, 4), (2, 3, 3), (3, 4, 4)), [1, 2, 3, 3], [0, 1, 3])
    """
    numbers: dict[Hashable, int] = {}
    items = [_items(row, image_token, numbers) for row in rows]
    kept, shareable = zip(*(_lengths(row) for row in rows), strict=True)
    pieces: list[tuple[int, int, int]] = []
    spans: list[tuple[int, int, int]] = []
    index: list[list[np.ndarray]] = [[] for _ in rows]
    at = 0

    def add_branches(members: list[int], start: int) -> None:
        nonlocal at
        branches: dict[Hashable, list[int]] = {}
        for row in members:
            shared = shareable[row] - start >= min_shared
            key = items[row][start : start + min_shared].tobytes() if shared else row
            branches.setdefault(key, []).append(row)
        for branch in branches.values():
            first = branch[0]
            stop = kept[first] if len(branch) == 1 else _common(items, branch, shareable, start)
            node, begin = len(spans), at
            pieces.append((first, start, stop))
            spans.append((0, 0, 0))
            at += stop - start
            for row in branch:
                index[row].append(np.arange(begin, at))
            inner = at
            if len(branch) > 1:
                add_branches(branch, stop)
            spans[node] = (begin, inner, at)

    add_branches(list(range(len(rows))), 0)
    return PrefixTree(
        tuple(pieces),
        TreeLayout(tuple(spans)),
        tuple(np.concatenate(parts) for parts in index),
        tuple(_images(rows, pieces, image_token)),
    )


class SequencePositions:
    """M-RoPE positions of rows, the model's own for all that stands before the end of the last image.

    Text behind it counts on from there, so that rows of equal images need the model's slow count once.

    Args:
        get_rope_index: the model's.
        image_token: the token that stands for a piece of an image.
        merge: patches along a side of what one token stands for.
    """

    def __init__(self, get_rope_index: Any, image_token: int, merge: int) -> None:
        self._count = get_rope_index
        self._image = image_token
        self._merge = merge
        self._heads = LRUCache[tuple[bytes, bytes], torch.Tensor](256)

    def __call__(self, row: TokenSequence, grids: torch.Tensor) -> torch.Tensor:
        """Positions (3, L) of a row of L tokens, on the CPU.

        Args:
            grids: (images, 3), temporal, height and width in patches of the row's images.

        Raises:
            SurgeryR1Error: when the row has more or fewer image tokens than its images have.
        """
        tokens = np.asarray(row.ids, dtype=np.int64)
        inside = np.flatnonzero(tokens == self._image)
        wanted = (grids.prod(-1) // self._merge**2).tolist()
        _, number = _runs(tokens == self._image)
        have = np.bincount(number[inside], minlength=1).tolist() if len(inside) else []
        if have != wanted:
            raise SurgeryR1Error(
                f"row {row.name or '(unnamed)'} has {have} image tokens for images of {wanted}",
                fix="a row must not be cut; images and text must come from the same processor",
            )
        head = tokens[: int(inside[-1]) + 1] if len(inside) else tokens[:0]
        key = (head.tobytes(), np.asarray(grids.cpu()).tobytes())
        if key not in self._heads:
            self._heads[key] = self._of_head(head, grids)
        known = self._heads[key]
        first = int(known.max()) + 1 if len(head) else 0
        tail = torch.arange(first, first + len(tokens) - len(head)).expand(3, -1)
        return torch.cat([known, tail], 1)

    def _of_head(self, head: np.ndarray, grids: torch.Tensor) -> torch.Tensor:
        if not len(head):
            return torch.zeros((3, 0), dtype=torch.long)
        ids = torch.as_tensor(head)[None]
        positions, _ = self._count(ids, (ids == self._image).int(), image_grid_thw=grids.cpu())
        return positions[:, 0]


def tree_inputs(tree: PrefixTree, rows: Sequence[TokenSequence], positions: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What a model's forward takes beside the pixels: tokens, labels, positions and layout of one packed sequence.

    Args:
        rows: of which the prefix tree was built.
        positions: M-RoPE positions of each row alone, (3, L).

    Returns:
        input_ids, shift_labels and attention_mask (1, N), position_ids (3, 1, N), tree.
    """
    ids = tree.pack([row.ids for row in rows])[None]
    return {
        "input_ids": ids,
        "shift_labels": tree.pack([row.labels for row in rows])[None],
        # Nothing is padded; trainers count tokens by it.
        "attention_mask": torch.ones_like(ids),
        "position_ids": tree.pack(positions)[:, None],
        "tree": tree.layout,
    }


def _items(row: TokenSequence, image_token: int, numbers: dict[Hashable, int]) -> np.ndarray:
    """Tokens as numbers that are equal only where tokens are: those of an image are its number in ``numbers``."""
    items = np.array(row.ids, dtype=np.int64)
    firsts, number = _runs(items == image_token)
    if len(firsts) != len(row.images):
        raise SurgeryR1Error(
            f"row {row.name or '(unnamed)'} has {len(firsts)} runs of image tokens and {len(row.images)} images",
            fix="the chat template must write one run of image tokens for each image",
        )
    keys = np.array([numbers.setdefault(key, -1 - len(numbers)) for key in row.images], dtype=np.int64)
    inside = items == image_token
    items[inside] = keys[number[inside]]
    return items


def count_runs(inside: np.ndarray) -> int:
    """How many unbroken runs of True there are.

    >>> count_runs(np.array([True, True, False, True]))
    2
    """
    return len(_runs(inside)[0])


def _runs(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First places of the runs of True, and for each place the number of its run (or the one before)."""
    starts = inside & ~np.concatenate([[False], inside[:-1]])
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def _lengths(row: TokenSequence) -> tuple[int, int]:
    """Tokens of a row that are computed, and how many of them other rows may share."""
    labelled = np.flatnonzero(np.asarray(row.labels) != IGNORE)
    if len(labelled) == 0:
        return len(row.ids), len(row.ids) - 1
    return int(labelled[-1]) + 1, int(labelled[0])


def _common(items: list[np.ndarray], branch: list[int], shareable: Sequence[int], start: int) -> int:
    """Where the rows of a branch, equal up to ``start`` and some tokens more, part."""
    stop = min(shareable[row] for row in branch)
    first = items[branch[0]]
    for row in branch[1:]:
        differ = np.flatnonzero(first[start:stop] != items[row][start:stop])
        stop = start + int(differ[0]) if len(differ) else stop
    return stop


def _images(rows: Sequence[TokenSequence], pieces: Sequence[tuple[int, int, int]], image_token: int) -> Any:
    for row, start, stop in pieces:
        firsts, _ = _runs(np.asarray(rows[row].ids) == image_token)
        for number, first in enumerate(firsts.tolist()):
            if start <= first < stop:
                yield row, number
