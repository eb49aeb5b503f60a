"""Model families, and what ``surgery_r1.json`` records of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from surgery_r1 import codec, prompts
from surgery_r1._util.checked import Positive, WrongData, checked
from surgery_r1._util.files import read_json, write_json
from surgery_r1.errors import SurgeryR1Error

INFO_FILE = "surgery_r1.json"

#: Model families: ``config.model_type`` -> box space that the published weights read and write.
FAMILIES: dict[str, str] = {
    "qwen2_vl": "norm1000",
    "qwen2_5_vl": "pixels",
    "qwen3_vl": "norm1000",
    "qwen3_vl_moe": "norm1000",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What ``surgery_r1.json`` records of a checkpoint.

    Attributes:
        min_pixels, max_pixels: limits of the resized image in pixels; trainer and engine must use the same.
        stage: ``base``, ``sft`` or ``rft``.
        step: optimiser step of that stage after which it was saved.
        template_sha256: of the chat template, so that a changed template is noticed.
        base_sha256: of the base model's weights and configuration.
        rationales, direct_answers: whether training here has shown replies with and without a rationale; says nothing
            of a base model.
        load_in_4bit: of an adapter, whether it was trained on its base in 4 bit.
    """

    box_space: str
    min_pixels: Positive
    max_pixels: Positive
    template_sha256: str
    base_model: str
    base_sha256: str
    stage: str = "base"
    dataset_sha256: str | None = None
    codec_version: str = codec.CODEC_VERSION
    prompt_version: str = prompts.PROMPT_VERSION
    step: int | None = None
    rationales: bool = True
    direct_answers: bool = False
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        if self.box_space not in codec.BOX_SPACES:
            raise ValueError(f"box_space {self.box_space!r}, expected one of {[*codec.BOX_SPACES]}")

    def save(self, folder: Path) -> None:
        write_json(folder / INFO_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> ModelInfo:
        """Read ``surgery_r1.json``.

        Raises:
            SurgeryR1Error: when the file does not fit, or was written by another codec or prompt version.
        """
        path = folder / INFO_FILE
        try:
            info = checked(cls, read_json(path))
        except WrongData as error:
            raise SurgeryR1Error(f"does not describe a model: {error}", where=path, fix="export it again") from None
        fix = "train again, or use the surgery-r1 version that wrote it"
        for name, have, want in (
            ("codec", info.codec_version, codec.CODEC_VERSION),
            ("prompt", info.prompt_version, prompts.PROMPT_VERSION),
        ):
            if have != want:
                raise SurgeryR1Error(f"written with {name} version {have}, this is {want}", where=path, fix=fix)
        return info
