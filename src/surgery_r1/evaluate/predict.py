"""Dataset + model -> ``predictions.jsonl``: raw text, one line a sample, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from surgery_r1 import prompts
from surgery_r1._util.files import atomic_write, dump_json, read_jsonl, readable, write_jsonl
from surgery_r1._util.locks import held, refuse_held
from surgery_r1._util.progress import Progress
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.models.encode import Prompt
from surgery_r1.models.processor import view_of

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.models.load import ModelInfo
    from surgery_r1.records import Sample

T = TypeVar("T")

#: The number of a sample, and what its line holds beside id and stamp.
NumberedLine = tuple[int, dict[str, Any]]

#: What a writer of predictions is said to do, in errors of others who want the same file.
PREDICTING = "predicting"

#: What lies behind a hash, in the error that tells of another one.
_MEANING: dict[str, str] = {
    "weights_sha256": "weights and configuration of the model",
    "engine_sha256": "tokenizer, chat template, image processor and token ids that end a reply",
}


class Engine(Protocol):
    """What :func:`predict` needs of an engine."""

    #: What lines call it: ``transformers`` and ``vllm`` (in this process) or ``endpoint``.
    name: str
    encoder: Any

    def replies(self, prompts: Sequence[Prompt]) -> Iterable[list[tuple[int, str]]]:
        """Replies in batches as they are done, each with the number of its prompt."""
        ...


def prompt_of(sample: Sample, dataset: Dataset, *, reasoning: bool = True, task: str = "cot") -> Prompt:
    """The prompt of a sample: its frame, its question, and the reply asked for (no box in sets without boxes)."""
    task = prompts.task_without_box(task, has_box=sample.box_px is not None)
    return Prompt((dataset.image_path(sample),), prompts.user_text(sample.question, task, reasoning))


def evenly_spaced(samples: Sequence[T], count: int) -> list[T]:
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
    weights_sha256: str | None,
    engine_sha256: str,
    options: GenerationOptions,
    dtype: str | None = "auto",
    limit: int = 0,
    progress: Progress | None = None,
) -> int:
    """Predict every sample of a split; the number predicted in this call.

    Lines are appended to ``<out>.partial`` as replies are done, and the file takes its name when it is whole: one line
    for each question, in the order of the split. A killed run goes on where it was, if all that a reply depends on is
    the same.

    Args:
        weights_sha256, engine_sha256: see :func:`surgery_r1.models.load.weights_sha256` and
            :func:`surgery_r1.models.load.engine_sha256`; None for weights that nobody here has seen.
        options, dtype: how ``engine`` generates; recorded in every line. ``dtype`` is None where it is not known.
        limit: predict only that many samples, evenly spread (0: all). Scoring counts the others as wrong.

    Raises:
        SurgeryR1Error: when ``out`` exists or is being written, a partial file was written with other settings, or
            the engine's replies are not one for each prompt.
    """
    stamp = _stamp(info, options, split, dataset.hash)
    hashes = {"weights_sha256": weights_sha256, "engine_sha256": engine_sha256}
    stamp = {"model": model_name, **hashes, **stamp, "dtype": dtype, "engine": engine.name}

    def replies(todo: Sequence[Sample]) -> Iterator[list[NumberedLine]]:
        prompts = [prompt_of(sample, dataset, reasoning=options.reasoning) for sample in todo]
        for batch in engine.replies(prompts):
            # One too many is told by their number.
            yield [(number, _own_line(engine, todo[min(number, len(todo) - 1)], text)) for number, text in batch]

    return write_predictions(questions(dataset, split, limit), out, stamp, replies, progress)


def _own_line(engine: Engine, sample: Sample, text: str) -> dict[str, Any]:
    return {"text": text, **_input_size(engine.encoder.processor, sample.width, sample.height)}


def questions(dataset: Dataset, split: str, limit: int = 0) -> list[Sample]:
    """The samples of a split, or ``limit`` of them, evenly spread.

    Raises:
        SurgeryR1Error: when there are none.
    """
    samples = evenly_spaced(dataset.split(split), limit)
    if not samples:
        raise SurgeryR1Error(f"split {split!r} has no samples", where=str(dataset.root), fix="check --split")
    return samples


def write_predictions(
    samples: Sequence[Sample],
    out: Path,
    stamp: dict[str, Any],
    replies: Callable[[Sequence[Sample]], Iterable[list[NumberedLine]]],
    progress: Progress | None = None,
) -> int:
    """Write what any system predicts of ``samples``; the number predicted in this call. Resumed as :func:`predict`.

    Args:
        stamp: what a prediction depends on; it is in every line.
        replies: samples -> batches as they are done: the number of a sample, and its line without id and stamp.

    Raises:
        SurgeryR1Error: as :func:`predict`.
    """
    with held(out, PREDICTING):
        refuse_existing(out)
        partial = out.with_name(out.name + ".partial")
        done = _finished(partial, stamp, {sample.id for sample in samples})
        todo = [sample for sample in samples if sample.id not in done]

        def told(count: int) -> None:
            if progress is not None:
                progress(len(done) + count, len(samples))

        _append(partial, todo, replies, stamp, told)
        _check_whole(partial, samples, stamp)
        _put_in_order(partial, samples)
        partial.replace(out)
    return len(todo)


def refuse_existing(out: Path) -> None:
    """Raise if ``out`` is there already: what is predicted is never written over."""
    if out.exists():
        raise SurgeryR1Error("already exists", where=str(out), fix="remove it or give another --out")


def refuse_taken(out: Path) -> None:
    """Loading can take minutes: what :func:`write_predictions` would refuse in the end is refused first."""
    refuse_existing(out)
    refuse_held(out, PREDICTING, fix="wait until it has ended, or give another --out")


def _append(
    partial: Path,
    todo: Sequence[Sample],
    replies: Callable[[Sequence[Sample]], Iterable[list[NumberedLine]]],
    stamp: dict[str, Any],
    told: Callable[[int], None],
) -> None:
    """Append the replies to ``todo`` to the partial file, batch by batch."""
    count = 0
    with partial.open("a", encoding="utf-8", newline="\n") as handle:
        for batch in replies(todo):
            for number, line in batch[: len(todo) - count]:
                handle.write(dump_json({"id": todo[number].id, **line, **stamp}) + "\n")
            count += len(batch)
            handle.flush()
            told(count)
    if count != len(todo):
        raise SurgeryR1Error(f"the engine gave {count} replies to {len(todo)} prompts", fix="predict again")


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


def _finished(partial: Path, stamp: dict[str, Any], wanted: Set[str]) -> set[str]:
    """Ids already predicted. A last line torn by a kill is cut off and predicted again."""
    if not partial.exists():
        return set()
    with readable(partial) as handle:
        text = handle.read().decode("utf-8", errors="replace")
    if text and not text.endswith("\n"):
        with atomic_write(partial) as handle:
            handle.write(text[: text.rfind("\n") + 1])
    done: set[str] = set()
    again = f"remove {partial} to start again, or give another --out"
    for where, record in read_jsonl(partial):
        for key, value in stamp.items():
            if record.get(key) != value:
                what = f" ({_MEANING[key]})" if key in _MEANING else ""
                raise SurgeryR1Error(
                    f"was started with {key}={record.get(key)!r}, now it is {value!r}{what}", where=where, fix=again
                )
        identity = record.get("id")
        if not isinstance(identity, str) or identity not in wanted:
            raise SurgeryR1Error(f"holds id {identity!r}, which is not asked for", where=where, fix=again)
        if not isinstance(record.get("text"), str) and not {"answer", "box_px"} <= record.keys():
            raise SurgeryR1Error(f"holds text {record.get('text')!r:.80}", where=where, fix=again)
        if identity in done:
            raise SurgeryR1Error(f"holds a second line for id {identity!r}", where=where, fix=again)
        done.add(identity)
    return done


def _check_whole(partial: Path, samples: Sequence[Sample], stamp: dict[str, Any]) -> None:
    """Refuse to finish a file that does not hold exactly one line for each question."""
    missing = len(samples) - len(_finished(partial, stamp, {sample.id for sample in samples}))
    if missing:
        raise SurgeryR1Error(
            f"{missing} of {len(samples)} questions have no line", where=str(partial), fix="run the same command again"
        )


def _put_in_order(partial: Path, samples: Sequence[Sample]) -> None:
    """Lines in the order of the questions: servers reply in any."""
    lines = {str(record["id"]): record for _, record in read_jsonl(partial)}
    if list(lines) != [sample.id for sample in samples]:
        write_jsonl(partial, (lines[sample.id] for sample in samples))
