"""Questions that are asked batch by batch, with what came of each in a file that goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1._util.files import dump_json, read_jsonl
from surgery_r1._util.progress import Progress
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.evaluate.interventions import Imposed

Flags = Mapping[str, bool]


def ask_what_is_missing(
    imposed: Sequence[Imposed],
    ask: Callable[[Sequence[Imposed]], Sequence[Flags]],
    partial: Path,
    *,
    stamp: Mapping[str, Any],
    batch_size: int,
    whole: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Flags]:
    """What followed from each imposed rationale, by question.

    Lines are appended to ``partial`` batch by batch: the question's ``id``, its ``flags``, and ``stamp``.

    Args:
        ask: flags of a batch, see :meth:`surgery_r1.evaluate.interventions.Interventions.flags`; not called where
            nothing is missing.
        stamp: what the result depends on.
        whole: what to remove to begin anew; the file by default.

    Raises:
        SurgeryR1Error: when the file was begun with another stamp.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Flags] = {record["id"]: record["flags"] for record in _finished(partial, stamp, whole or partial)}
    todo = [one for one in imposed if one.line.id not in found]
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        told = ask(part)
        with partial.open("a", encoding="utf-8") as handle:
            for one, flags in zip(part, told, strict=True):
                handle.write(dump_json({"id": one.line.id, "flags": flags, **stamp}) + "\n")
                found[one.line.id] = flags
        if progress is not None:
            progress(len(imposed) - len(todo) + start + len(part), len(imposed))
    return found


def _finished(partial: Path, stamp: Mapping[str, Any], whole: Path) -> list[dict[str, Any]]:
    """Lines that a cut call has left; one torn by the kill is cut off."""
    if not partial.is_file():
        return []
    data = partial.read_bytes()
    if not data.endswith(b"\n"):
        partial.write_bytes(data[: data.rfind(b"\n") + 1])
    records = []
    for where, record in read_jsonl(partial):
        if any(record.get(key) != value for key, value in stamp.items()):
            raise SurgeryR1Error(
                "was started with another model, other predictions or other settings",
                where=where,
                fix=f"repeat that command, or remove {whole}",
            )
        records.append(record)
    return records
