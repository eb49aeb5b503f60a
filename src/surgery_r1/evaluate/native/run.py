"""From any vision-language model to ``predictions.jsonl``: boxes in source pixels, replies kept, problems counted."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1._util.progress import Progress
from surgery_r1.chat.client import Client
from surgery_r1.codec import View
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions, open_client, served_name
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.native.boxes import NativeBoxes
from surgery_r1.evaluate.native.local import NativeLocal, NativeModel, open_native
from surgery_r1.evaluate.native.questions import NativeOptions, NativeQuestions
from surgery_r1.evaluate.native.server import NativeServer, find_constraint
from surgery_r1.evaluate.predict import questions as questions_of
from surgery_r1.evaluate.predict import refuse_taken, write_predictions
from surgery_r1.models.load import weights_sha256
from surgery_r1.records import Sample

#: Where no folder says how a server resizes: the grid of Qwen2-VL and Qwen2.5-VL, the only families here that write
#: pixels, and about the most pixels at which they ground well.
_FACTOR, _LEAST, _MOST = 28, 56 * 56, 1_003_520


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """What a user may say of a model that was not trained here.

    Attributes:
        box_space, box_format: how it writes boxes, see :class:`surgery_r1.evaluate.native.boxes.NativeBoxes`; None
            takes what its family writes.
        few_shot: examples before each question.
        unconstrained: go on with a server that obeys no constraint.
        max_pixels: of the resized frame; 0 as the folder says.
    """

    box_space: str | None = None
    box_format: str | None = None
    few_shot: int = 0
    unconstrained: bool = False
    max_pixels: int = 0


def predict_native(
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    settings: NativeSettings,
    options: GenerationOptions,
    *,
    server: ServerOptions | None = None,
    limit: int = 0,
    dtype: str = "auto",
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Ask a model in its own words; the number of predictions made in this call. Resumed as
    :func:`surgery_r1.evaluate.predict.predict`.

    Args:
        model: a folder of any family, or with ``server`` also a name there.
        server: where the model is served; None loads it into this process.

    Raises:
        SurgeryR1Error: for a model whose boxes are not known, a server that obeys no constraint or changes its model,
            examples that are not there, or as :func:`surgery_r1.evaluate.predict.write_predictions`.
    """
    refuse_taken(out)
    stage = "few-shot" if settings.few_shot else "zero-shot"
    stamp: dict[str, Any] = {"model": str(model), "stage": stage, "split": split, "dataset_hash": dataset.hash}
    stamp["max_new_tokens"] = options.max_new_tokens
    run = _Run(dataset, split, questions_of(dataset, split, limit), out, settings, options, stamp, progress)
    if server is None:
        return _predict_here(model, run, dtype, allow_hub)
    client, _ = open_client(server, options.max_new_tokens)
    with closing(client):
        folder = _folder_here(model, settings, allow_hub)
        name, _ = served_name(client, model, server.served_model, folder.folder if folder else None)
        return _predict_served(client, name, folder, run, server.concurrency)


@dataclass(frozen=True, slots=True)
class _Run:
    """What is asked, and where the replies go."""

    dataset: Dataset
    split: str
    samples: list[Sample]
    out: Path
    settings: NativeSettings
    options: GenerationOptions
    stamp: dict[str, Any]
    progress: Progress | None


def _predict_here(model: str | Path, run: _Run, dtype: str, allow_hub: bool) -> int:
    opened = open_native(model, dtype=dtype, max_pixels=run.settings.max_pixels, allow_hub=allow_hub)
    own = _options(run.settings, run.options, opened)
    asked = NativeQuestions(run.dataset, run.split, own, opened.view)
    least, most = opened.pixel_limits()
    stamp: dict[str, Any] = {"weights_sha256": weights_sha256(opened.folder), "min_pixels": least, "max_pixels": most}
    stamp |= {"dtype": dtype, "engine": NativeLocal.name, "asked": asked.asked("none")}
    engine = NativeLocal(opened, asked, own)
    return write_predictions(run.samples, run.out, {**run.stamp, **stamp}, engine.replies, run.progress)


def _predict_served(client: Client, name: str, folder: NativeModel | None, run: _Run, concurrency: int) -> int:
    """Args as in :class:`NativeServer`; ``folder`` describes the model, where it is here."""
    own = _options(run.settings, run.options, folder)
    sizes = _Sizes(folder, run.settings.max_pixels, own.boxes.space == "pixels")
    asked = NativeQuestions(run.dataset, run.split, own, sizes.view)
    constraint, served_as = find_constraint(client, name, unconstrained=run.settings.unconstrained)
    stamp: dict[str, Any] = {
        "served_as": served_as,
        "weights_sha256": None,
        "min_pixels": sizes.least,
        "max_pixels": sizes.most,
    }
    stamp |= {"dtype": None, "engine": NativeServer.name, "asked": asked.asked(constraint)}
    engine = NativeServer(client, name, served_as, asked, own, constraint, concurrency, sizes.factor)
    return write_predictions(run.samples, run.out, {**run.stamp, **stamp}, engine.replies, run.progress)


def _options(settings: NativeSettings, options: GenerationOptions, opened: NativeModel | None) -> NativeOptions:
    space = settings.box_space or (opened.box_space if opened else None)
    if space is None:
        raise SurgeryR1Error(
            f"in which units a {opened.family!r} model writes boxes is not known"
            if opened
            else "no folder here says of which family the model is, and so how it writes boxes",
            fix="state it: --box-space pixels (Qwen2.5-VL), norm1000 (Qwen2-VL, Qwen3-VL), source, norm100 or norm1; "
            "and --box-format where it is not two corners",
        )
    boxes = NativeBoxes(space, settings.box_format or "xyxy")
    if opened is not None:
        _refuse_unknown_pixels(boxes, opened)
    return NativeOptions(boxes, settings.few_shot, options.reasoning, options.max_new_tokens, options.batch_size)


def _folder_here(model: str | Path, settings: NativeSettings, allow_hub: bool) -> NativeModel | None:
    """The folder that describes a served model, if there is one here."""
    if str(model) != "tiny" and not Path(model).exists():
        return None
    return open_native(model, max_pixels=settings.max_pixels, with_model=False, allow_hub=allow_hub)


def _refuse_unknown_pixels(boxes: NativeBoxes, opened: NativeModel) -> None:
    if boxes.space == "pixels" and not opened.sized:
        raise SurgeryR1Error(
            f"--box-space pixels: how a {opened.family!r} model resizes a frame is not known",
            where=opened.folder,
            fix="if it writes pixels of the frame as it is, give --box-space source; else serve it and give --endpoint "
            "with its name alone: frames are then resized before they are sent",
        )


class _Sizes:
    """How frames are sent to a server, and what its model sees.

    Args:
        opened: the model's folder, where it is here.
        resized: boxes are in pixels of the resized image, so that frames are resized before they are sent.
    """

    def __init__(self, opened: NativeModel | None, max_pixels: int, resized: bool) -> None:
        self._opened, self._resized = opened, resized
        self.least: int | None = None
        self.most: int | None = None
        self.factor = 0
        if opened is not None:
            self.least, self.most = opened.pixel_limits()
        elif resized:
            self.least, self.most = _LEAST, max_pixels or _MOST
        elif max_pixels:
            raise SurgeryR1Error("--max-pixels, but frames are sent as they are", fix="leave it out")
        if resized:
            self.factor = _FACTOR if opened is None else opened.factor

    def view(self, width: int, height: int) -> View:
        """How a frame is seen; the size of the resized image is 0 where it is not known."""
        if self._opened is not None:
            return self._opened.view(width, height)
        if not self._resized:
            return View(width, height, 0, 0)
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        limits: dict[str, Any] = {"factor": self.factor, "min_pixels": self.least, "max_pixels": self.most}
        input_height, input_width = smart_resize(height, width, **limits)
        return View(width, height, input_width, input_height)
