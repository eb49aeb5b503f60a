"""What of a specialist is trained: both designs end in the same two heads and the same loss.

``features``: the tokens of a frozen vision tower, which the words of the question and two learned queries, one for the
answer and one for the box, attend to (ours; the queries after DETR, Carion et al. 2020, arXiv 2005.12872).
``fusion``: see :mod:`surgery_r1.models.specialist.fusion`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from surgery_r1.models.specialist.folder import SpecialistInfo, load_state
from surgery_r1.models.specialist.words import NOTHING

#: Weights of the loss: cross entropy, L1 of the box in shares of the frame, 1 - GIoU. The latter two as in DETR.
ANSWER, L1, GIOU = 1.0, 5.0, 2.0


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size to two corners, (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of paired boxes in corners, (n, 4) each, in (-1, 1] (Rezatofighi et al. 2019, arXiv 1902.09630).

    >>> giou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])).tolist()
    [0.5]
    """
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - shared
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


class Heads(nn.Module):
    """The answer by a linear layer, the box by an MLP: centre and size in shares of the frame."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.answer = nn.Linear(width, classes)
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )

    def forward(self, for_answer: torch.Tensor, for_box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answer(for_answer), self.box(for_box).sigmoid()


class Specialist(nn.Module):
    """A body that looks and reads, and two heads.

    Args:
        body: (features, places, seen, frames, words) -> what the heads are given, (questions, width) each.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.heads = Heads(width, classes)

    def forward(
        self,
        features: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        frames: torch.Tensor,
        words: torch.Tensor,
        answers: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Logits of the answers and boxes of questions; with the truth also the loss.

        Args:
            features: of the frozen encoder, (frames, tokens, channels).
            places: of the tokens' centres, x and y in shares of the frame, (frames, tokens, 2).
            seen: false for tokens that only fill up, (frames, tokens).
            frames: the frame of each question, (questions,).
            words: their numbers, (questions, words).
            answers: class of each, -100 where it does not count.
            boxes: corners in shares of the frame, (questions, 4); NaN where there is none.
        """
        logits, found = self.heads(*self.body(features, places, seen, frames, words))
        output = {"answers": logits, "boxes": corners(found)}
        if answers is not None and boxes is not None:
            return {"loss": self._loss(logits, output["boxes"], answers, boxes), **output}
        return output

    def _loss(
        self, logits: torch.Tensor, found: torch.Tensor, answers: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        loss = ANSWER * functional.cross_entropy(logits, answers)
        has_box = ~boxes.isnan().any(-1)
        if has_box.any():
            a, b = found[has_box], boxes[has_box]
            loss = loss + L1 * (a - b).abs().mean() + GIOU * (1 - giou(a, b)).mean()
        return loss

    def load_checkpoint(self, folder: Any) -> None:
        """What a trainer's checkpoint holds: :func:`surgery_r1.train.checkpoints.resumable` asks for it."""
        load_state(self, folder)


class FeatureBody(nn.Module):
    """The ``features`` design: words and two queries attend to each other and to the tokens of the frame.

    Args:
        vocabulary: numbers that words can have.
    """

    def __init__(self, info: SpecialistInfo, vocabulary: int) -> None:
        super().__init__()
        width = info.width
        rest: dict[str, Any] = {"dropout": info.dropout, "batch_first": True, "norm_first": True}
        self.seen = nn.Sequential(nn.LayerNorm(info.channels), nn.Linear(info.channels, width))
        self.places = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width))
        self.looks = nn.TransformerEncoderLayer(width, info.heads, 4 * width, **rest)
        self.words = nn.Embedding(vocabulary, width, padding_idx=NOTHING)
        self.order = nn.Parameter(torch.randn(info.max_words, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(2, width) * 0.02)
        layer = nn.TransformerDecoderLayer(width, info.heads, 4 * width, **rest)
        self.reads = nn.TransformerDecoder(layer, info.layers, nn.LayerNorm(width))

    def forward(
        self,
        features: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        frames: torch.Tensor,
        words: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        memory = self.looks(self.seen(features) + self.places(places), src_key_padding_mask=~seen)
        # Trailing blanks are nobody's words.
        words = words[:, : max(1, int((words != NOTHING).sum(-1).max()))]
        text = self.words(words) + self.order[: words.shape[1]]
        asked = torch.cat([self.queries.expand(len(words), -1, -1), text], 1)
        blank = torch.cat([words.new_zeros(len(words), 2, dtype=torch.bool), words == NOTHING], 1)
        out = self.reads(asked, memory[frames], tgt_key_padding_mask=blank, memory_key_padding_mask=~seen[frames])
        return out[:, 0], out[:, 1]


def build_specialist(info: SpecialistInfo, vocabulary: int, trunk: Any = None) -> Specialist:
    """An untrained specialist.

    Args:
        trunk: of the ``fusion`` design, pretrained; None makes one of its configuration, for weights to come.
    """
    if info.design == "features":
        return Specialist(FeatureBody(info, vocabulary), info.width, len(info.classes))
    from surgery_r1.models.specialist.fusion import FusionBody, empty_trunk

    body = FusionBody(info, vocabulary, empty_trunk(info.trunk) if trunk is None else trunk)
    return Specialist(body, info.width, len(info.classes))
