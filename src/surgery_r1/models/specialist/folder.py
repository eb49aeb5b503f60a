"""The folder of a specialist: ``model.safetensors`` and ``specialist.json``, which says all else that it needs."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from surgery_r1._util.checked import Count, NotNegative, Positive, WrongData, checked
from surgery_r1._util.files import read_json, sha256_file, write_json
from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.models.runs import SPECIALIST_FILE
from surgery_r1.models.save import recover

WEIGHTS_FILE = "model.safetensors"
#: Bumped whenever a folder of before cannot be read any more.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class SpecialistInfo:
    """What ``specialist.json`` holds.

    Attributes:
        design: ``features`` or ``fusion``, see :mod:`surgery_r1.models.specialist.network`.
        classes: answers, in the order of the classifier.
        words: that the questions of training have, in the order of the embedding.
        max_words: words of a question that are read.
        encoder, encoder_sha256: the folder whose frozen weights read frames, and their hash.
        channels: of what it makes of a frame.
        width, layers, heads, dropout: of what is trained.
        trunk: configuration of the transformer that follows the fusion, as transformers writes it.
        dataset_sha256: of the dataset that was trained on.
        step: optimiser step after which it was saved.
    """

    design: Literal["features", "fusion"]
    classes: tuple[str, ...]
    words: tuple[str, ...]
    max_words: Positive
    encoder: str
    encoder_sha256: str
    channels: Positive
    width: Positive
    layers: Positive
    heads: Positive
    dropout: NotNegative
    dataset_sha256: str
    trunk: dict[str, Any] = field(default_factory=dict)
    step: Count = 0
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        write_json(folder / SPECIALIST_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> SpecialistInfo:
        """Read ``specialist.json``.

        Raises:
            SurgeryR1Error: when it does not fit, or is of another format.
        """
        path = folder / SPECIALIST_FILE
        try:
            info = checked(cls, read_json(path))
        except WrongData as error:
            raise SurgeryR1Error(f"does not describe a specialist: {error}", where=path, fix="train again") from None
        if info.format != FORMAT:
            raise SurgeryR1Error(f"format {info.format}, this version reads {FORMAT}", where=path, fix="train again")
        return info


def specialist_folder(name: str | Path) -> Path | None:
    """The folder of a specialist that a name stands for (a run's ``best``, or the folder itself); None for others."""
    path = Path(name)
    folders = (path / "best",) if (path / "run.json").is_file() else (path, path / "best")
    return next((folder for folder in folders if (folder / SPECIALIST_FILE).is_file()), None)


def save_specialist(model: Any, info: SpecialistInfo, folder: Path) -> None:
    """Write a folder whole or not at all; see :func:`surgery_r1.models.save.save_model`.

    Raises:
        SurgeryR1Error: when the disk is full or cannot be written.
    """
    from safetensors.torch import save_file

    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    fix = "free some disk space and go on with --resume"
    with explained("the model could not be saved", where=folder, fix=fix):
        recover(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, partial / WEIGHTS_FILE)
        (partial / WEIGHTS_FILE).chmod(0o644)
        info.save(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def load_state(model: Any, folder: Path) -> None:
    """Read the weights of a folder into a model.

    Raises:
        SurgeryR1Error: when they are torn, or of another shape.
    """
    from safetensors.torch import load_file

    fix = "copy the folder again, or train again"
    with explained("the weights cannot be read", where=folder / WEIGHTS_FILE, fix=fix):
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))


def specialist_sha256(folder: Path) -> str:
    """Hash over weights and description."""
    parts = [sha256_file(folder / name) for name in (WEIGHTS_FILE, SPECIALIST_FILE)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
