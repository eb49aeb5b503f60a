"""A dataset as the rows that other trainers take: each training row for SFT, each question with its truth for RL.

The forms are those that the trainers document, or read where they document none:

- TRL 1.16: ``docs/source/dataset_formats.md``, conversational prompt and completion with ``images``; reward functions
  get every other column.
- ms-swift 4.6: ``docs/source_en/Customization/Custom-dataset.md``, ``messages`` with ``<image>`` and ``images``; GRPO
  passes every other column on. LLaMA-Factory (August 2026): ``data/README.md``, the same rows, named and described in
  ``dataset_info.json``.
- verl 0.9: ``verl/utils/dataset/rl_dataset.py`` and ``multiturn_sft_dataset.py``, ``<image>`` in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from surgery_r1._util.files import write_json, write_jsonl
from surgery_r1._util.folders import replacing_folder
from surgery_r1.data.export.conversations import conversation_columns, conversations_of
from surgery_r1.data.export.parquet import frame_records, write_parquet
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.load import Bundle, from_pretrained
from surgery_r1.train.datasets import rft_question

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

Row = dict[str, Any]

#: Where ms-swift, LLaMA-Factory and verl put an image into a text.
_IMAGE = "<image>"
_PLACEHOLDERS = (_IMAGE, "<video>", "<audio>")


@dataclass(frozen=True)
class _Form:
    """How a trainer wants rows.

    Attributes:
        image: of an absolute path.
        sft: of what :func:`conversations_of` gives.
        rft: of a question with its split and images, and its place.
        sft_columns, rft_columns: ``datasets.Features``, where images are embedded or not; None writes JSON Lines.
    """

    image: Callable[[str], Any]
    sft: Callable[[Row], Row]
    rft: Callable[[Row, int], Row]
    sft_columns: Callable[[bool], Any] | None
    rft_columns: Callable[[bool], Any] | None


def _with_placeholder(messages: list[dict[str, str]], where: str) -> list[dict[str, str]]:
    """Messages in whose user's text the image is named, in front of all else."""
    texts = [message["content"] for message in messages]
    found = next((word for word in _PLACEHOLDERS for text in texts if word in text), None)
    if found is not None:
        raise SurgeryR1Error(
            f"a text holds {found}, which these trainers replace by media", where=where, fix="leave it out"
        )
    return [{**m, "content": _IMAGE + m["content"]} if m["role"] == "user" else m for m in messages]


def _message_columns() -> Any:
    from datasets import List, Value

    return List({"role": Value("string"), "content": Value("string")})


def _trl_rft_columns(embedded: bool) -> Any:
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features({"id": text, "prompt": _message_columns(), "images": List(Image()), "truth": text})


def _messages(row: Row) -> Row:
    return {"messages": _with_placeholder(row["prompt"], row["id"]) + row["completion"], "images": row["images"]}


def _swift_rft(row: Row, index: int) -> Row:
    messages = _with_placeholder(row["prompt"], row["id"])
    return {"messages": messages, "images": row["images"], "truth": row["truth"], "id": row["id"]}


def _verl_images(embedded: bool) -> Any:
    """verl opens ``bytes`` wherever that key is, empty or not, and ``image`` as a path."""
    from datasets import Image, List, Value

    return List(Image() if embedded else {"image": Value("string")})


def _verl_sft_columns(embedded: bool) -> Any:
    from datasets import Features

    return Features({"messages": _message_columns(), "images": _verl_images(embedded)})


def _verl_rft(row: Row, index: int) -> Row:
    return {
        "data_source": row["source"],
        "prompt": _with_placeholder(row["prompt"], row["id"]),
        "images": row["images"],
        "ability": "surgical_vqla",
        "reward_model": {"style": "rule", "ground_truth": row["truth"]},
        "extra_info": {"split": row["split"], "index": index, "id": row["id"]},
    }


def _verl_rft_columns(embedded: bool) -> Any:
    from datasets import Features, Value

    text = Value("string")
    return Features(
        {
            "data_source": text,
            "prompt": _message_columns(),
            "images": _verl_images(embedded),
            "ability": text,
            "reward_model": {"style": text, "ground_truth": text},
            "extra_info": {"split": text, "index": Value("int64"), "id": text},
        }
    )


FORMS: dict[str, _Form] = {
    "trl": _Form(
        image=lambda path: {"bytes": None, "path": path},
        sft=lambda row: {name: row[name] for name in ("prompt", "completion", "images")},
        rft=lambda row, index: {name: row[name] for name in ("id", "prompt", "images", "truth")},
        sft_columns=lambda embedded: conversation_columns(),
        rft_columns=_trl_rft_columns,
    ),
    "ms-swift": _Form(str, _messages, _swift_rft, None, None),
    "verl": _Form(lambda path: {"image": path}, _messages, _verl_rft, _verl_sft_columns, _verl_rft_columns),
}


def export_for(
    trainer: str,
    dataset: Dataset,
    model: str | Path,
    out: Path,
    *,
    include_dev: bool = False,
    embed_images: bool = False,
) -> dict[str, int]:
    """Write ``out/sft/train`` and ``out/rft/train`` as ``trainer`` reads them, and a README that says how.

    Args:
        trainer: a key of :data:`FORMS`.
        model: of the model that is to be trained; boxes are written in its units.
        out: a folder that is empty or not there.
        include_dev: rows and questions of the dev sequences too.
        embed_images: put the images into the files (for ms-swift, which reads JSON, into ``out/images``); otherwise
            their absolute paths are in them.

    Returns:
        Rows by stage.

    Raises:
        SurgeryR1Error: when ``out`` holds something, there is no such model, no training rows, or an image or text
            that cannot be passed on.
    """
    form, bundle = FORMS[trainer], from_pretrained(model, with_model=False)
    splits = ("train", "dev") if include_dev else ("train",)
    with replacing_folder(out) as target:
        frames = _Frames(dataset, splits, embed_images, form, target)
        sft = map(form.sft, _sft_rows(frames, bundle))
        rft = (form.rft(row, index) for index, row in enumerate(_rft_rows(frames, bundle)))
        counts = {
            "sft": _write(sft, form.sft_columns and form.sft_columns(embed_images), target / "sft"),
            "rft": _write(rft, form.rft_columns and form.rft_columns(embed_images), target / "rft"),
        }
        if not all(counts.values()):
            raise SurgeryR1Error("no training rows", where=str(dataset.root), fix="build it from training sequences")
        if trainer == "ms-swift":
            write_json(target / "dataset_info.json", {"surgery_r1": _LLAMA_FACTORY})
        (target / "README.md").write_text(_readme(trainer, bundle, embed_images), encoding="utf-8")
    return counts


@dataclass(frozen=True)
class _Frames:
    """The frames to export, each with its image as the trainer takes it; ``folder`` is where copies go."""

    dataset: Dataset
    splits: tuple[str, ...]
    embed_images: bool
    form: _Form
    folder: Path

    def __iter__(self) -> Iterator[tuple[Row, Any]]:
        for split in self.splits:
            for frame in frame_records(self.dataset, split, self.embed_images):
                yield frame, self._shown(frame)

    def _shown(self, frame: Row) -> Any:
        if not self.embed_images:
            return self.form.image(str(self.dataset.image_root.resolve() / frame["image"]))
        if self.form.sft_columns is not None:
            return frame["image"]
        path = PurePosixPath("images", self.dataset.frames[frame["frame_id"]].image)
        if ".." in path.parts or path.parts[0] != "images":
            raise SurgeryR1Error(f"the image {path} lies outside the image root", fix="leave out --embed-images")
        copy = self.folder / path
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(frame["image"]["bytes"])
        return str(path)


def _sft_rows(frames: _Frames, bundle: Bundle) -> Iterator[Row]:
    for frame, shown in frames:
        for row in conversations_of(frame, shown, bundle.processor, bundle.info.box_space):
            yield {**row, "id": frame["frame_id"]}


def _rft_rows(frames: _Frames, bundle: Bundle) -> Iterator[Row]:
    dataset = frames.dataset
    for frame, shown in frames:
        for question in frame["questions"]:
            sample = dataset.samples[question["id"]]
            row = rft_question(dataset, sample, bundle.processor, bundle.info.box_space)
            yield {**row, "images": [shown], "split": sample.split, "source": sample.source}


def _write(rows: Iterator[Row], columns: Any, folder: Path) -> int:
    if columns is not None:
        return write_parquet(rows, columns, folder / "train.parquet")
    folder.mkdir()
    return write_jsonl(folder / "train.jsonl", rows)


#: How LLaMA-Factory is told what the rows for SFT hold.
_LLAMA_FACTORY = {
    "file_name": "sft/train.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def _readme(trainer: str, bundle: Bundle, embed_images: bool) -> str:
    """How the trainer is given the folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("rows.md.jinja")
    return template.render(trainer=trainer, embed_images=embed_images, **asdict(bundle.info))
