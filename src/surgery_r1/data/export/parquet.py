"""A dataset as Parquet, one row a frame with its questions and their rows, which ``datasets.load_dataset`` opens."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import vocab
from surgery_r1._util.files import open_regular, write_json
from surgery_r1._util.folders import replacing_folder
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.records import Frame, Sample, TrainingRow

#: Frames written at a time: a row group.
_GROUP = 64
#: What is written of a question, beside its rows, and of a training row.
_QUESTION = ("id", "question", "kind", "subject", "answer", "box_px", "answers_accepted", "boxes_accepted")
_ROW = ("id", "task", "question", "reasoning", "answer", "box_px", "writer")


def frame_columns(embed_images: bool) -> Any:
    """Columns of a frame, as ``datasets.Features``; ``image`` is a picture, or its path below ``image_root``."""
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("int32")
    box = List(Value("float64"))
    lists = {"box_px": box, "answers_accepted": List(text), "boxes_accepted": List(box)}
    row = {name: lists.get(name, text) for name in _ROW}
    question = {name: lists.get(name, text) for name in _QUESTION} | {"rows": List(row)}
    seen = {"name": text, "state": text, "location": text, "box_px": box}
    return Features(
        {
            **dict.fromkeys(("frame_id", "source", "split", "sequence", "sha256"), text),
            "image": Image() if embed_images else text,
            "width": number,
            "height": number,
            "objects": List(seen),
            "questions": List(question),
        }
    )


def export_frames(dataset: Dataset, out: Path, *, embed_images: bool = False) -> dict[str, int]:
    """Write ``out/data/<split>.parquet``, a card that names them, and the manifest.

    Args:
        out: a folder that is empty or not there.
        embed_images: put the bytes of the images in; frames then leave with the files.

    Returns:
        Frames by split.

    Raises:
        SurgeryR1Error: when ``out`` holds something, or an image cannot be read.
    """
    counts = {}
    with replacing_folder(out) as target:
        for split in vocab.SPLITS:
            records = frame_records(dataset, split, embed_images)
            count = write_parquet(records, frame_columns(embed_images), target / "data" / f"{split}.parquet")
            if count:
                counts[split] = count
        write_json(target / "manifest.json", dataset.manifest)
        (target / "README.md").write_text(_card(dataset, counts, embed_images), encoding="utf-8")
    return counts


def write_parquet(records: Iterator[dict[str, Any]], columns: Any, path: Path) -> int:
    """Write records of ``datasets.Features`` some at a time; their number. No file is made of none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = columns.arrow_schema
    count, some = 0, list(islice(records, _GROUP))
    if not some:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        while some:
            writer.write_table(pa.Table.from_pylist(some, schema))
            count += len(some)
            some = list(islice(records, _GROUP))
    return count


def frame_records(dataset: Dataset, split: str, embed_images: bool) -> Iterator[dict[str, Any]]:
    """The frames of a split as :func:`frame_columns` has them."""
    frames: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.split(split):
        frames[sample.frame_id].append(sample)
    for frame_id, samples in frames.items():
        frame = dataset.frames[frame_id]
        yield {
            "frame_id": frame_id,
            "source": samples[0].source,
            "split": split,
            "sequence": samples[0].sequence,
            "sha256": frame.sha256,
            "image": _image(dataset, frame) if embed_images else frame.image,
            "width": frame.width,
            "height": frame.height,
            "objects": [seen.to_json() for seen in frame.objects],
            "questions": [_question(sample, dataset.rows_of.get(sample.id, [])) for sample in samples],
        }


def _image(dataset: Dataset, frame: Frame) -> dict[str, Any]:
    path = dataset.image_path(frame)
    try:
        with open_regular(path) as handle:
            data = handle.read()
    except OSError as error:
        raise SurgeryR1Error(f"the image cannot be read: {error.strerror}", where=str(path), fix="restore it") from None
    if hashlib.sha256(data).hexdigest() != frame.sha256:
        raise SurgeryR1Error("the image changed since the dataset was built", where=str(path), fix="build it again")
    return {"bytes": data, "path": Path(frame.image).name}


def _question(sample: Sample, rows: list[TrainingRow]) -> dict[str, Any]:
    written = [{name: getattr(row, name) for name in _ROW} for row in rows]
    return {name: getattr(sample, name) for name in _QUESTION} | {"rows": written}


def _card(dataset: Dataset, counts: dict[str, int], embed_images: bool) -> str:
    """The dataset's own card, behind the heading that tells ``datasets`` which file is which split."""
    files = "".join(f"  - split: {split}\n    path: data/{split}.parquet\n" for split in counts)
    own = dataset.root / "README.md"
    where = "in the files" if embed_images else "not in the files: `image` is a path below the manifest's `image_root`"
    about = f"One row a frame, with its questions and their training rows. Images are {where}.\n"
    card = own.read_text(encoding="utf-8") if own.is_file() else ""
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n{about}\n{card}"
