"""The ``fusion`` design: image and question attend, a gate mixes them token by token, a vision transformer follows.

After CAT-ViL (Bai et al. 2023, arXiv 2307.05182), which grew out of Surgical-VQLA (Bai et al. 2023, arXiv 2305.11692);
the gate after gated multimodal units (Arevalo et al. 2017, arXiv 1702.01992). Rebuilt in our own words. What differs on
purpose: each token has a gate of its own, where the public code flattens both sides into one vector for a single gate a
sample, which takes hundreds of millions of weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.models.specialist.folder import SpecialistInfo
from surgery_r1.models.specialist.words import NOTHING

#: Vision transformers whose blocks can follow the fusion.
TRUNKS = ("vit", "deit")


class TokenGate(nn.Module):
    """Mixes two sequences of tokens: for each token one number says how much of either is taken."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Linear(2 * width, 1)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Both (questions, tokens, width); so is what comes out."""
        share = self.gate(torch.cat([image, text], -1)).sigmoid()
        return share * self.image(image).tanh() + (1 - share) * self.text(text).tanh()


class _Attends(nn.Module):
    """A block that attends to its own tokens and then to others."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.TransformerDecoderLayer(width, heads, width, dropout, batch_first=True)

    def forward(self, image: torch.Tensor, text: torch.Tensor, blank: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block(image, text, memory_key_padding_mask=blank)
        return out


class FusionBody(nn.Module):
    """Text by self-attention; image by self-attention and attention to text; gate; trunk; mean.

    Args:
        trunk: blocks and last norm of a vision transformer of ``info.width``.
    """

    def __init__(self, info: SpecialistInfo, vocabulary: int, trunk: nn.Module) -> None:
        super().__init__()
        width = info.width
        self.seen = nn.Linear(info.channels, width)
        self.words = nn.Embedding(vocabulary, width, padding_idx=NOTHING)
        self.order = nn.Embedding(info.max_words, width)
        self.norm = nn.LayerNorm(width)
        self.reads = nn.ModuleList(
            nn.TransformerEncoderLayer(width, info.heads, width, info.dropout, batch_first=True)
            for _ in range(info.layers)
        )
        self.looks = nn.ModuleList(_Attends(width, info.heads, info.dropout) for _ in range(info.layers))
        self.gate = TokenGate(width)
        self.trunk = trunk

    def forward(
        self,
        features: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        frames: torch.Tensor,
        words: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # A question without a known word would leave nothing to attend to.
        blank = (words == NOTHING) & (words != NOTHING).any(-1, keepdim=True)
        text = self.norm(self.words(words) + self.order.weight[: words.shape[1]])
        for reads in self.reads:
            text = reads(text, src_key_padding_mask=blank)
        image = self.seen(features)[frames]
        for looks in self.looks:
            image = looks(image, text, blank)
        pooled = run_trunk(self.trunk, self.gate(image, text)).mean(1)
        return pooled, pooled


def run_trunk(trunk: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Blocks and last norm of a vision transformer on tokens that are no patches."""
    for block in trunk.layers:
        out = block(tokens)
        tokens = out[0] if isinstance(out, tuple) else out
    normed: torch.Tensor = trunk.layernorm(tokens)
    return normed


def load_trunk(folder: Path, width: int) -> Any:
    """The pretrained transformer of a folder, without what it has for patches.

    Raises:
        SurgeryR1Error: for no such folder, another family, or another width.
    """
    from transformers import AutoModel

    model: Any = load_pretrained(AutoModel, folder, TRUNKS, "specialist.trunk", add_pooling_layer=False)
    if model.config.hidden_size != width:
        raise SurgeryR1Error(
            f"specialist.width = {width}, but the trunk is {model.config.hidden_size} wide",
            where=folder,
            fix=f"set specialist.width = {model.config.hidden_size}",
        )
    return _blocks(model)


def empty_trunk(config: dict[str, Any]) -> Any:
    """A transformer of that configuration, for weights to come."""
    from transformers import AutoConfig, AutoModel

    settings = dict(config)
    return _blocks(AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)))


def _blocks(model: Any) -> Any:
    # Patches and class tokens are not used: left in, they would be saved and never trained.
    kept = nn.Module()
    kept.layers, kept.layernorm = model.layers, model.layernorm
    kept.config = model.config
    return kept


def load_pretrained(kind: Any, folder: Path, families: tuple[str, ...], key: str, **options: Any) -> Any:
    """Pretrained weights of a folder here; random ones are refused.

    Args:
        key: of the config that names it, for errors.

    Raises:
        SurgeryR1Error: for no such folder, another family, or weights that are missing.
    """
    if not (folder / "config.json").is_file():
        raise SurgeryR1Error(f"{key}: no model folder", where=folder, fix="download it first, with config.json")
    fix = f"give a whole folder of one of these families: {', '.join(families)}"
    with explained(f"{key} cannot be loaded", where=folder, fix=fix):
        loaded: Any = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
        model, report = loaded
        if model.config.model_type not in families:
            raise ValueError(f"a {model.config.model_type!r} model")
        if report["missing_keys"]:
            raise ValueError(f"{len(report['missing_keys'])} tensors are missing")
    return model
