"""Dataset + model -> ``predictions.jsonl``: raw text, one line a sample, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from surgery_r1 import prompts
from surgery_r1._util.files import atomic_write, dump_json, read_jsonl
from surgery_r1._util.progress import Progress
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.models.encode import Prompt
from surgery_r1.models.processor import view_of

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.models.load import ModelInfo
    from surgery_r1.records import Sample


class Engine(Protocol):
    """What :func:`predict` needs of an engine."""

    encoder: Any

    def generate(self, prompts: Sequence[Prompt]) -> Iterable[list[str]]:
        """Replies batch by batch, in the order of ``prompts``."""
        ...


def prompt_of(sample: Sample, dataset: Dataset, *, reasoning: bool = True, task: str = "cot") -> Prompt:
    """The prompt of a sample: its frame, its question, and the reply asked for (no box in sets without boxes)."""
    task = prompts.task_without_box(task, has_box=sample.box_px is not None)
    return Prompt((dataset.image_path(sample),), prompts.user_text(sample.question, task, reasoning))


def evenly_spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` of ``samples``, evenly spread; all of them for 0 or too large a count.

    >>> evenly_spaced("abcdef", 3)
    ['a', 'c', 'e']
    """
    if count <= 0 or count >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]


def predict(
    dataset: Dataset,
    split: str,
    engine: Engine,
    info: ModelInfo,
    out: Path,
    *,
    model_name: str,
    weights_sha256: str,
    options: GenerationOptions,
    dtype: str = "auto",
    limit: int = 0,
    progress: Progress | None = None,
) -> int:
    """Predict every sample of a split; the number predicted in this call.

    Lines are appended to ``<out>.partial`` batch by batch, and the file takes its name when it is whole: a killed
    run goes on where it was, if model, dataset, split and options are the same.

    Args:
        options, dtype: how ``engine`` generates; recorded in every line.
        limit: predict only that many samples, evenly spread (0: all). Scoring counts the others as wrong.

    Raises:
        SurgeryR1Error: when ``out`` exists, a partial file was written with other settings, or the engine's replies
            are not one for each prompt.
    """
    if out.exists():
        raise SurgeryR1Error("already exists", where=str(out), fix="remove it or give another --out")
    samples = evenly_spaced(dataset.split(split), limit)
    if not samples:
        raise SurgeryR1Error(f"split {split!r} has no samples", where=str(dataset.root), fix="check --split")
    stamp = _stamp(info, options, split, dataset.hash)
    stamp = {"model": model_name, "weights_sha256": weights_sha256, **stamp, "dtype": dtype}
    partial = out.with_name(out.name + ".partial")
    done = _finished(partial, stamp) & {sample.id for sample in samples}
    todo = [sample for sample in samples if sample.id not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with partial.open("a", encoding="utf-8", newline="\n") as handle:
        prompts = [prompt_of(sample, dataset, reasoning=options.reasoning) for sample in todo]
        for texts in engine.generate(prompts):
            for sample, text in zip(todo[count:], texts, strict=False):
                seen = _input_size(engine.encoder.processor, sample.width, sample.height)
                handle.write(dump_json({"id": sample.id, "text": text, **seen, **stamp}) + "\n")
            count += len(texts)
            handle.flush()
            if progress is not None:
                progress(len(done) + count, len(samples))
    if count != len(todo):
        raise SurgeryR1Error(f"the engine gave {count} replies to {len(todo)} prompts", fix="predict again")
    partial.replace(out)
    return count


def _stamp(info: ModelInfo, options: GenerationOptions, split: str, dataset_hash: str) -> dict[str, Any]:
    """What a reply depends on, beside the weights: a prediction file is resumed only where all of it is the same."""
    return {
        "stage": info.stage,
        "codec_version": info.codec_version,
        "prompt_version": info.prompt_version,
        "box_space": info.box_space,
        "reasoning": options.reasoning,
        "split": split,
        "dataset_hash": dataset_hash,
        "min_pixels": info.min_pixels,
        "max_pixels": info.max_pixels,
        "max_new_tokens": options.max_new_tokens,
    }


def _input_size(processor: Any, width: int, height: int) -> dict[str, int]:
    """The size in pixels at which the model saw a frame."""
    view = view_of(processor, width, height)
    return {"input_width": view.input_width, "input_height": view.input_height}


def _finished(partial: Path, stamp: dict[str, Any]) -> set[str]:
    """Ids already predicted. A last line torn by a kill is cut off and predicted again."""
    if not partial.exists():
        return set()
    text = partial.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        with atomic_write(partial) as handle:
            handle.write(text[: text.rfind("\n") + 1])
    done = set()
    for where, record in read_jsonl(partial):
        for key, value in stamp.items():
            if record.get(key) != value:
                raise SurgeryR1Error(
                    f"was started with {key}={record.get(key)!r}, now it is {value!r}",
                    where=where,
                    fix=f"remove {partial} to start again, or give another --out",
                )
        done.add(record["id"])
    return done
