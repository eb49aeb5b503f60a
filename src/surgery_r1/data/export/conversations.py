"""Frames with nested questions, as :mod:`surgery_r1.data.export.parquet` writes them, into conversations for TRL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.processor import view_of
from surgery_r1.records import TASKS
from surgery_r1.train.datasets import prompt_and_completion

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def conversation_columns() -> Any:
    """Columns of a conversation, as ``datasets.Features``."""
    from datasets import Features, Image, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    return Features({"prompt": List(message), "completion": List(message), "images": List(Image())})


def conversations_of(
    frame: Mapping[str, Any], shown: Any, processor: Any, box_space: str, tasks: Sequence[str] = TASKS
) -> Iterator[dict[str, Any]]:
    """A frame's training rows as TRL takes them: prompt and completion (messages), and images.

    Args:
        frame: a row of :func:`surgery_r1.data.export.parquet.frame_columns`.
        shown: its image, as ``datasets.Image`` takes one.
        processor, box_space: of the model that is to be trained; boxes are written in its units.
        tasks: kinds of rows to take.
    """
    view = view_of(processor, frame["width"], frame["height"])
    for row in (row for question in frame["questions"] for row in question["rows"] if row["task"] in tasks):
        prompt, completion = prompt_and_completion(
            row["task"], row["question"], row["reasoning"], row["answer"], row["box_px"], box_space, view
        )
        yield {"prompt": prompt, "completion": completion, "images": [shown]}


def to_conversations(
    frames: HFDataset,
    processor: Any,
    box_space: str,
    *,
    tasks: Sequence[str] = TASKS,
    image_root: Path | None = None,
) -> HFDataset:
    """:func:`conversations_of` all frames, as a data set for TRL's SFTTrainer.

    Args:
        frames: from ``datasets.load_dataset`` on an exported folder.
        image_root: where images lie that are not in the files.

    Raises:
        SurgeryR1Error: for images that are not in the files, without ``image_root``.
    """
    from datasets import Image, Value

    embedded = not isinstance(frames.features["image"], Value)
    if not embedded and image_root is None:
        raise SurgeryR1Error("the images are not in the files", fix="say where they lie: image_root")

    def convert(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: list[dict[str, Any]] = []
        for values in zip(*batch.values(), strict=True):
            frame = dict(zip(batch, values, strict=True))
            shown = frame["image"] if embedded else _at(image_root, frame["image"])
            rows += conversations_of(frame, shown, processor, box_space, tasks)
        return {name: [row[name] for row in rows] for name in ("prompt", "completion", "images")}

    # Bytes go through as they are: nothing is decoded and encoded again.
    source = frames.cast_column("image", Image(decode=False)) if embedded else frames
    return source.map(
        convert, batched=True, batch_size=16, remove_columns=source.column_names, features=conversation_columns()
    )


def _at(root: Path | None, image: str) -> dict[str, Any]:
    """An image that stays where it is, as ``datasets.Image`` takes one."""
    assert root is not None
    return {"bytes": None, "path": str(root / image)}
