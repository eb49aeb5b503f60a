"""What a folder was begun with: contrast, config, data and seeds. It is written before the first stage and held to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surgery_r1._util.files import atomic_write, read_json, sha256_file, write_json
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.reproduce.contrast import SHIPPED
from surgery_r1.reproduce.made_of import settled
from surgery_r1.reproduce.rivals import RIVALS
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.run_folder import provenance


def now() -> str:
    """The time in UTC, as files of ours write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _held_to(config: TrainConfig) -> dict[str, Any]:
    """What a later call must have too; the seed is said by ``--seeds``."""
    return {name: value for name, value in settled(config.to_json()).items() if name != "seed"}


@dataclass(frozen=True, slots=True)
class Registration:
    """What ``registered.json`` holds beside the contrast, whose file lies next to it.

    Attributes:
        config: values that results depend on, by dotted name.
        data: what the scenes are drawn with, or the hash of the user's dataset.
        seeds: each with the time at which it was added.
    """

    folder: Path
    contrast_sha256: str
    registered: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    seeds: Sequence[Mapping[str, Any]]

    @property
    def contrast(self) -> Path:
        """The registered contrast file."""
        return self.folder / "contrast.toml"


def registered_seeds(folder: Path) -> tuple[int, ...]:
    """The seeds that a folder was begun with; none where it holds no reproduction."""
    path = folder / "registered.json"
    return tuple(item["seed"] for item in read_json(path)["seeds"]) if path.is_file() else ()


def contrast_to_register(folder: Path, given: Path | None) -> Path:
    """The contrast file that holds for a folder: the one that lies there, else ``given``, else the shipped one.

    Raises:
        SurgeryR1Error: when the registered contrast was changed, or ``given`` is missing or another one.
    """
    if given is not None and not given.is_file():
        raise SurgeryR1Error("no such contrast", where=given, fix="give a TOML file, or leave --contrast out")
    here, noted = folder / "contrast.toml", folder / "registered.json"
    begun = read_json(noted) if noted.is_file() else None
    if begun is not None:
        what = f"registered on {begun['registered']} with sha256 {begun['contrast']['sha256'][:12]}"
        if not here.is_file() or sha256_file(here) != begun["contrast"]["sha256"]:
            raise SurgeryR1Error(
                f"is not the contrast that was {what}",
                where=here,
                fix="restore that file (registered.json holds its text); another contrast needs another --out",
            )
    if given is not None and here.is_file() and sha256_file(given) != sha256_file(here):
        raise SurgeryR1Error(
            f"is another contrast than the one in {here}",
            where=given,
            fix="leave --contrast out; another contrast needs another --out",
        )
    return here if here.is_file() else given or SHIPPED


def register(
    folder: Path, contrast: Path, config: TrainConfig, data: Mapping[str, Any], seeds: Sequence[int]
) -> Registration:
    """Write what a folder is begun with, or hold a later call to it; new seeds are added.

    Args:
        contrast: what :func:`contrast_to_register` gave, read and checked.

    Raises:
        SurgeryR1Error: when the folder holds something else, was begun with another config or other data, or seeds
            that it was begun with are missing.
    """
    noted = folder / "registered.json"
    if noted.is_file():
        begun = read_json(noted)
        _refuse_changes(folder, begun, config, data, seeds)
    else:
        _refuse_taken(folder)
        text = contrast.read_bytes()
        with atomic_write(folder / "contrast.toml", "wb") as handle:
            handle.write(text)
        begun = {
            "registered": now(),
            "contrast": {
                "sha256": hashlib.sha256(text).hexdigest(),
                "from": "the shipped one" if contrast == SHIPPED else str(contrast),
                "text": text.decode("utf-8"),
            },
            "config": _held_to(config),
            "data": dict(data),
            "seeds": [],
            **provenance(),
        }
    known = {item["seed"] for item in begun["seeds"]}
    begun["seeds"] += [{"seed": seed, "added": now()} for seed in seeds if seed not in known]
    write_json(noted, begun)
    return read_registration(folder)


def read_registration(folder: Path) -> Registration:
    """What :func:`register` wrote."""
    begun = read_json(folder / "registered.json")
    facts = {name: begun[name] for name in ("registered", "config", "data", "seeds")}
    return Registration(folder, begun["contrast"]["sha256"], **facts)


def _refuse_taken(folder: Path) -> None:
    ours = ("contrast.toml", RIVALS)
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.exists() else []
    if others:
        raise SurgeryR1Error(
            f"holds {others[0]}, and no registered.json that says what was begun here",
            where=folder,
            fix="give another --out; what lies here is left as it is",
        )


def _refuse_changes(
    folder: Path, begun: Mapping[str, Any], config: TrainConfig, data: Mapping[str, Any], seeds: Sequence[int]
) -> None:
    """A table of two configs or of chosen seeds would be none."""
    old, new = begun["config"], _held_to(config)
    changed = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise SurgeryR1Error(
            f"was begun with another config: {'; '.join(changed)}",
            where=folder,
            fix="go on with that config, or give another --out",
        )
    if begun["data"] != dict(data):
        raise SurgeryR1Error(
            f"was begun with other data: {begun['data']}, now {dict(data)}",
            where=folder,
            fix="go on with that data, or give another --out",
        )
    missing = [item["seed"] for item in begun["seeds"] if item["seed"] not in seeds]
    if missing:
        known = " ".join(str(item["seed"]) for item in begun["seeds"])
        raise SurgeryR1Error(
            f"was begun with seeds {known}, of which {', '.join(map(str, missing))} would be left out of the table",
            where=folder,
            fix=f"give --seeds {known} (more may be added), or leave --seeds out",
        )
