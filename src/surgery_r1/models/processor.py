"""Processors of images alone, which resize with Pillow: a model reads the same pixels on every machine.

transformers 5 loads a Qwen-VL processor only together with its video processor, which needs torchvision, and resizes
with torchvision where that is installed: by up to a grey level otherwise than Pillow, enough to turn a token. Frames
are images, so the video part is left out, and Pillow resizes them whatever is installed. ``AutoProcessor`` must not be
called directly: without a registered class it silently returns a bare tokenizer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoTokenizer, BatchFeature, Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

from surgery_r1._util.byte_cache import ByteCache
from surgery_r1._util.checked import Positive, WrongData, checked
from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error, explained

if TYPE_CHECKING:
    from PIL.Image import Image


class _ImageOnly:
    """Drops ``video_processor`` from a Qwen-VL processor; ProcessorMixin reads its parts from this signature."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # Qwen3-VL's processor also looks for these; the older ones ignore them.
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        self.vision_start_token_id = tokenizer.convert_tokens_to_ids(self.vision_start_token)
        self.vision_end_token_id = tokenizer.convert_tokens_to_ids(self.vision_end_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)  # type: ignore[arg-type]

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]  # type: ignore[attr-defined]
        return [*dict.fromkeys(names), "mm_token_type_ids"]


class ImageOnlyQwen2VLProcessor(_ImageOnly, Qwen2VLProcessor):
    """Qwen2-VL without video."""


class ImageOnlyQwen25VLProcessor(_ImageOnly, Qwen2_5_VLProcessor):
    """Qwen2.5-VL without video."""


class ImageOnlyQwen3VLProcessor(_ImageOnly, Qwen3VLProcessor):
    """Qwen3-VL without video."""


_KEEPING = threading.Lock()


class _Kept(ByteCache[bytes, tuple[Any, Any]]):
    """Patches and grid by image; left behind when the processor is copied, saved or sent to another process."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, lambda image: image[0].nbytes)

    def __reduce__(self) -> Any:
        return _Kept, (self.maxsize,)


def image_key(image: Any, settings: Mapping[str, Any]) -> bytes:
    """One key for an image (a PIL image or an array) and how it is resized: equal keys mean equal patches."""
    array = np.ascontiguousarray(image)
    digest = hashlib.blake2b(array.data, digest_size=16)
    digest.update(repr((array.shape, str(array.dtype), sorted(settings.items(), key=lambda item: item[0]))).encode())
    return digest.digest()


class DeduplicatingImageProcessor(Qwen2VLImageProcessorPil):
    """Resizes each distinct image once: trainers pass a group's frame once for every completion.

    Recently resized frames are kept, because they come again in the next passes and epochs.
    """

    #: Bytes of patches kept; what was resized longest ago is dropped first.
    keep_bytes = 256 * 2**20

    def _preprocess(self, images: list[np.ndarray], **settings: Any) -> BatchFeature:  # type: ignore[override]
        kept: _Kept = self.__dict__.setdefault("_kept", _Kept(self.keep_bytes))
        tensor_type = settings.pop("return_tensors", None)
        keys = [image_key(image, settings) for image in images]
        # Threads may do this at once: what this call needs is held here, whatever the others drop.
        done: dict[bytes, tuple[Any, Any]] = {}
        for key, image in zip(keys, images, strict=True):
            with _KEEPING:
                found = done.get(key) or kept.get(key)
            if found is None:
                result = super()._preprocess([image], return_tensors=None, **settings)
                found = (np.asarray(result["pixel_values"]), np.asarray(result["image_grid_thw"]))
            done[key] = found
        data = {
            "pixel_values": np.concatenate([done[key][0] for key in keys]),
            "image_grid_thw": np.concatenate([done[key][1] for key in keys]),
        }
        with _KEEPING:
            kept.update(done)
        return BatchFeature(data=data, tensor_type=tensor_type)

    def to_dict(self) -> dict[str, Any]:
        """What is saved: the stock processor's settings under its own name."""
        data = super().to_dict()
        data.pop("_kept", None)
        return {**data, "image_processor_type": "Qwen2VLImageProcessor"}


#: Model family -> its processor without video; the class below it is the stock one, which other engines look up.
PROCESSORS: dict[str, type[Any]] = {
    "qwen2_vl": ImageOnlyQwen2VLProcessor,
    "qwen2_5_vl": ImageOnlyQwen25VLProcessor,
    "qwen3_vl": ImageOnlyQwen3VLProcessor,
    "qwen3_vl_moe": ImageOnlyQwen3VLProcessor,
}


@dataclass(frozen=True)
class _Resizing:
    """What ``preprocessor_config.json`` must say of images."""

    patch_size: Positive
    merge_size: Positive
    temporal_patch_size: Positive
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    size: dict[str, Positive | None]


def load_processor(folder: Path, model_type: str, *, min_pixels: int | None = None, max_pixels: int | None = None):
    """The processor of a model folder, with its pixel limits set.

    Args:
        folder: model folder.
        model_type: ``config.model_type`` of the model, one of :data:`surgery_r1.models.load.FAMILIES`.
        min_pixels, max_pixels: limits of the resized image in pixels; None keeps the folder's own.

    Raises:
        SurgeryR1Error: when files are missing or torn.
    """
    fix = "copy tokenizer.json, tokenizer_config.json and preprocessor_config.json of the model again"
    with explained("tokenizer or image processor cannot be read", where=folder, fix=fix):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        image_processor = DeduplicatingImageProcessor.from_pretrained(folder, local_files_only=True)
        template = getattr(tokenizer, "chat_template", None)
        processor = PROCESSORS[model_type](image_processor, tokenizer, chat_template=template)
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    given = {edge: pixels for edge, pixels in limits.items() if pixels is not None}
    image = processor.image_processor
    try:
        checked(
            _Resizing, {f.name: getattr(image, f.name, None) for f in fields(_Resizing)} | {"size": dict(image.size)}
        )
    except (WrongData, TypeError, ValueError) as error:
        where, fix = folder / "preprocessor_config.json", "copy it of the model again"
        raise SurgeryR1Error(f"does not say how images are resized: {error}", where=where, fix=fix) from None
    image.size = dict(image.size) | given
    # Generation needs the prompt's last token at the right end.
    processor.tokenizer.padding_side = "left"
    return processor


def view_of(processor: Any, width: int, height: int) -> View:
    """How this processor resizes a frame of ``width`` x ``height`` pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    image = processor.image_processor
    input_height, input_width = smart_resize(
        height,
        width,
        factor=image.patch_size * image.merge_size,
        min_pixels=image.size["shortest_edge"],
        max_pixels=image.size["longest_edge"],
    )
    return View(width, height, input_width, input_height)


def as_read(image: Image, processor: Any) -> Image:
    """An RGB image at the size that the model reads, resized as this processor does.

    For engines that resize by themselves, and may do it with another library: they leave this size alone. Where they
    would not, because the pixel limits lie too close together, it is the image as it is.
    """
    view = view_of(processor, *image.size)
    size = view.input_width, view.input_height
    again = view_of(processor, *size)
    if (again.input_width, again.input_height) != size:
        return image
    return image.resize(size, resample=processor.image_processor.resample)
