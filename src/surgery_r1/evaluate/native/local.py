"""A vision-language model of any family from a local folder, asked in its own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_json
from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.evaluate.native.questions import NativeOptions, NativeQuestions
from surgery_r1.evaluate.predict import NumberedLine
from surgery_r1.models.encode import load_image
from surgery_r1.models.info import FAMILIES
from surgery_r1.models.load import from_pretrained, generation_config, resolve
from surgery_r1.models.processor import view_of
from surgery_r1.records import Sample


@dataclass(slots=True)
class NativeModel:
    """A model folder, opened.

    Attributes:
        model: None where only the processor was asked for.
        family: ``model_type`` of its configuration.
        box_space: in which it writes boxes; None where that is not known.
    """

    model: Any
    processor: Any
    family: str
    folder: Path
    box_space: str | None = None

    @property
    def sized(self) -> bool:
        """Whether it is known how frames are resized."""
        return self.family in FAMILIES

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        image = self.processor.image_processor
        return int(image.patch_size * image.merge_size)

    def pixel_limits(self) -> tuple[int, int] | tuple[None, None]:
        """Least and most pixels of a resized frame, where they are known."""
        size = self.processor.image_processor.size if self.sized else {}
        return (size["shortest_edge"], size["longest_edge"]) if size else (None, None)

    def view(self, width: int, height: int) -> View:
        """How the model sees a frame; the size of the resized image is 0 where it is not known."""
        return view_of(self.processor, width, height) if self.sized else View(width, height, 0, 0)


def open_native(
    name: str | Path, *, dtype: str = "auto", max_pixels: int = 0, with_model: bool = True, allow_hub: bool = False
) -> NativeModel:
    """A folder of any family that transformers knows as image and text in, text out. No code of the folder is run.

    Raises:
        SurgeryR1Error: for no such folder, one that cannot be loaded, or ``max_pixels`` for a family whose processor
            is not known to take it.
    """
    folder = resolve(name, allow_hub=allow_hub)
    path = folder / "config.json"
    family = str(read_json(path).get("model_type")) if path.is_file() else ""
    if not family or family in FAMILIES:
        bundle = from_pretrained(
            name, dtype=dtype, max_pixels=max_pixels or None, with_model=with_model, allow_hub=allow_hub
        )
        # An adapter's folder names no family, but its base was known.
        return NativeModel(bundle.model, bundle.processor, family or "qwen2_5_vl", folder, bundle.info.box_space)
    if max_pixels:
        raise SurgeryR1Error(f"--max-pixels with a {family!r} model", where=folder, fix="leave it out")
    model, processor = _any_family(folder, dtype, with_model)
    return NativeModel(model, processor, family, folder)


def _any_family(folder: Path, dtype: str, with_model: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from surgery_r1.models.quiet import without_progress_bars

    fix = "check that this version of transformers knows its family and that its files are whole; some need torchvision"
    with explained("the model cannot be loaded", where=folder, fix=fix), without_progress_bars():
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not with_model:
            return None, processor
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    # A published folder's sampling and penalties are not what is measured.
    model.generation_config = generation_config(folder, processor.tokenizer)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


class NativeLocal:
    """Greedy replies of a model in this process, whatever its own settings say of sampling."""

    name = "transformers"

    def __init__(self, opened: NativeModel, questions: NativeQuestions, options: NativeOptions) -> None:
        self._opened, self._questions, self._options = opened, questions, options
        tokenizer = opened.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def replies(self, samples: Sequence[Sample]) -> Iterator[list[NumberedLine]]:
        """The line of each sample, with its number, batch by batch."""
        size = max(1, self._options.batch_size)
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            lines = [
                self._questions.line(sample, text, cut_off=cut)
                for sample, (text, cut) in zip(batch, self._generate(batch), strict=True)
            ]
            yield list(enumerate(lines, start=start))

    def _generate(self, batch: Sequence[Sample]) -> list[tuple[str, bool]]:
        """Texts, and whether each was cut off."""
        import torch

        model, processor = self._opened.model, self._opened.processor
        conversations = [self._questions.conversation(sample, _image) for sample in batch]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=self._options.max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        replies = output[:, inputs["input_ids"].shape[1] :]
        ends = _ends(model)
        texts = processor.batch_decode(replies, skip_special_tokens=True)
        full = replies.shape[1] >= self._options.max_new_tokens
        return [(text, full and not ends & set(row.tolist())) for text, row in zip(texts, replies, strict=True)]


def _ends(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, list | tuple) else {end}


def _image(path: Path, _: View) -> dict[str, Any]:
    return {"type": "image", "image": load_image(path)}
