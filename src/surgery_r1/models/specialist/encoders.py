"""Frozen encoders: what a specialist sees of a frame. Each frame is read once, as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from surgery_r1._util.byte_cache import ByteCache
from surgery_r1.models.encode import ImageCache
from surgery_r1.models.load import from_pretrained, weights_sha256
from surgery_r1.models.sharing.attention import core
from surgery_r1.models.specialist.fusion import load_pretrained

#: Bytes of features that are kept.
_KEPT = 1024 * 2**20
#: The fusion design's frames in pixels, the grid they are pooled to, and ImageNet's mean and deviation.
_SIZE, _GRID = (300, 256), 5
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame as an encoder sees it.

    Attributes:
        features: (tokens, channels), float32.
        places: of the tokens' centres, x and y in shares of the frame, (tokens, 2).
    """

    features: torch.Tensor
    places: torch.Tensor


class Encoder:
    """Reads frames and keeps what it has read.

    Args:
        name, sha256: of the folder that its weights come from.
        channels: of its features.
        read: an image -> features on a grid, (rows, columns, channels).
    """

    def __init__(
        self, name: str, sha256: str, channels: int, read: Callable[[Image.Image], torch.Tensor], limit: int = _KEPT
    ) -> None:
        self.name, self.sha256, self.channels = name, sha256, channels
        self._read, self._images = read, ImageCache()
        self._kept = ByteCache[tuple[str, str], Seen](limit, lambda seen: seen.features.nbytes)

    def __call__(self, path: Path, flip: str = "none") -> Seen:
        """A frame, mirrored as ``flip`` says.

        Raises:
            SurgeryR1Error: when it is missing or cannot be decoded.
        """
        key = str(path), flip
        seen = self._kept.get(key)
        if seen is None:
            with torch.no_grad():
                grid = self._read(self._images(path, flip)).float()
            seen = self._kept[key] = Seen(grid.flatten(0, 1).clone(), _centres(*grid.shape[:2]))
        return seen


def _centres(rows: int, columns: int) -> torch.Tensor:
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def tower_encoder(name: str | Path, *, allow_hub: bool = False) -> Encoder:
    """The vision tower of a Qwen-VL model, with its own pixel limits.

    Raises:
        SurgeryR1Error: as :func:`surgery_r1.models.load.from_pretrained`.
    """
    bundle = from_pretrained(name, allow_hub=allow_hub)
    model, images = core(bundle.model).model, bundle.processor.image_processor
    merge = images.merge_size

    def read(image: Image.Image) -> torch.Tensor:
        inputs = images(images=[image], return_tensors="pt").to(bundle.model.device)
        found = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        features: torch.Tensor = found.pooler_output[0]
        return features.cpu().view(rows // merge, columns // merge, -1)

    channels = model.config.get_text_config().hidden_size
    return Encoder(str(name), weights_sha256(bundle.folder), channels, read)


def resnet_encoder(folder: Path) -> Encoder:
    """A pretrained ResNet of a folder, its last map pooled to 5 x 5.

    Raises:
        SurgeryR1Error: when it is not there, no ResNet, or without its weights.
    """
    from transformers import AutoModel

    model = load_pretrained(AutoModel, folder, ("resnet",), "specialist.backbone").eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (_MEAN, _DEVIATION))

    def read(image: Image.Image) -> torch.Tensor:
        resized = image.resize(_SIZE, resample=Image.Resampling.BILINEAR)
        raw = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
        pixels = raw.view(_SIZE[1], _SIZE[0], 3).permute(2, 0, 1) / 255
        last = model(((pixels - mean) / deviation)[None].to(device)).last_hidden_state
        return torch.nn.functional.adaptive_avg_pool2d(last, _GRID)[0].permute(1, 2, 0).cpu()

    return Encoder(str(folder), weights_sha256(folder), int(model.config.hidden_sizes[-1]), read)


def open_encoder(design: str, name: str, *, allow_hub: bool = False) -> Encoder:
    """The encoder of a design, see :func:`tower_encoder` and :func:`resnet_encoder`."""
    return tower_encoder(name, allow_hub=allow_hub) if design == "features" else resnet_encoder(Path(name))


def collated(frames: list[Seen]) -> dict[str, Any]:
    """Frames in a batch: features, places, and which tokens only fill up (see ``Specialist.forward``)."""
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(seen.features) for seen in frames])
    return {
        "features": pad([seen.features for seen in frames], batch_first=True),
        "places": pad([seen.places for seen in frames], batch_first=True),
        "seen": torch.arange(int(lengths.max())) < lengths[:, None],
    }
