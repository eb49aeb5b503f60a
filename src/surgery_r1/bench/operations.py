"""Multiply-adds counted from shapes: what sharing should gain, before anything is measured.

Counted: matrix products of the vision tower and the language model, both products of attention, and the output
projection. A multiply-add is 2 operations; a backward pass costs two forwards where weights are trained, one where
they are frozen but lie before trained ones (LoRA). Norms, activations and rotary embeddings are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery_r1.bench.shapes import SHAPES, Work
from surgery_r1.models.sharing.prefix_tree import TreeLayout


@dataclass(frozen=True)
class Cost:
    """What one language-model pass and one image cost, in operations of a forward pass."""

    token: float
    pair: float
    head: float
    image: float


def cost(work: Work) -> Cost:
    """Costs of a token, a query-key pair, a projected position and an image."""
    text, vision = SHAPES[work.shape]["text"], SHAPES[work.shape]["vision"]
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    narrow = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    weights = layers * (2 * hidden**2 + 2 * hidden * narrow + 3 * hidden * text["intermediate_size"])
    columns, rows = work.grid
    patches, wide = 4 * columns * rows, vision["hidden_size"]
    tower = vision["depth"] * (4 * wide**2 + 3 * wide * vision["intermediate_size"]) + 1176 * wide
    merger = (4 * wide) ** 2 + 4 * wide * hidden
    # Windows of 8 x 8 patches, and the whole image in the layers named by "full".
    pairs = patches * (64 * (vision["depth"] - len(vision["full"])) + patches * len(vision["full"]))
    return Cost(
        token=2.0 * weights,
        pair=4.0 * hidden * layers,
        head=2.0 * hidden * text["vocab_size"],
        image=2.0 * (tower * patches + merger * patches / 4) + 4.0 * wide * pairs,
    )


def row_pairs(lengths: Sequence[int]) -> int:
    """Query-key pairs of rows computed one by one, causally.

    >>> row_pairs([3, 2])
    9
    """
    return sum(n * (n + 1) // 2 for n in lengths)


def tree_pairs(layout: TreeLayout) -> int:
    """Query-key pairs of a prefix tree.

    >>> tree_pairs(TreeLayout(((0, 2, 4), (2, 3, 3), (3, 4, 4))))
    9
    """
    total = 0
    for start, stop, end in layout.spans:
        own = stop - start
        total += own * (own + 1) // 2 + own * (end - stop)
    return total


def rollout_counts(work: Work, shared: bool, copies: int) -> dict[str, int]:
    """What :func:`generation` takes, of ``copies`` replies to every question.

    Args:
        shared: a frame is read once, and a question once up to its last token.
    """
    columns, rows = work.grid
    new, frame = work.completion_tokens, columns * rows
    prompt = frame + work.prompt_tokens
    replies = work.asked * copies
    # The last token of a reply is not fed back.
    length = prompt + new - 1
    tokens, pairs, images = replies * length, replies * row_pairs([length]), replies
    if shared:
        again, repeats = work.asked - work.frames, replies - work.asked
        tokens -= again * frame + repeats * (prompt - 1)
        pairs -= again * row_pairs([frame]) + repeats * row_pairs([prompt - 1])
        images = work.frames
    return {"tokens": tokens, "pairs": pairs, "heads": replies * new, "images": images}


def passes(work: Work) -> float:
    """Forward and backward of a training pass, in forwards."""
    forward = 2 if work.checkpointing else 1
    return forward + (1 if work.lora else 2)


def training(work: Work, tokens: int, pairs: int, heads: int, images: int, *, kept: bool = False) -> float:
    """Operations of a forward and backward pass over the language model, with the frozen tower before it.

    Args:
        kept: the tower runs without gradients. With an adapter and checkpointing TRL makes the embeddings need
            gradients, those of patches too: a tower that is not kept is then recomputed and passed backward.
    """
    c = cost(work)
    # Attention has no weights: its backward is two forwards always.
    attention = c.pair * pairs * (passes(work) + (1 if work.lora else 0))
    tower = passes(work) if work.lora and work.checkpointing and not kept else 1
    return (c.token * tokens + c.head * heads) * passes(work) + attention + c.image * images * tower


def generation(work: Work, tokens: int, pairs: int, heads: int, images: int) -> float:
    """Operations of prefill and decoding."""
    c = cost(work)
    return c.token * tokens + c.pair * pairs + c.head * heads + c.image * images
