"""The model card that ``export`` writes: all that is needed to ask the model without this package."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery_r1 import __version__, codec, prompts
from surgery_r1._util.files import read_json
from surgery_r1.models.info import ModelInfo
from surgery_r1.models.processor import view_of

_SPACE = {
    "pixels": "pixels of the resized image",
    "norm1000": "0 to 1000 along each axis",
    "norm100": "0 to 100 along each axis",
    "source": "pixels of the source frame",
}
#: What a corner is multiplied with, along x and along y.
_FORMULA = {
    "pixels": {"x": "W / w", "y": "H / h"},
    "norm1000": {"x": "W / 1000", "y": "H / 1000"},
    "norm100": {"x": "W / 100", "y": "H / 100"},
    "source": {"x": "1", "y": "1"},
}
#: The worked example: a frame of EndoVis-18 and a box in its pixels.
_FRAME, _BOX_PX = (1280, 1024), (320, 128, 640, 512)
_QUESTION = "What organ is being operated?"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What the card says of a LoRA adapter: the model it stands on, its rank, whether it changes the vision tower."""

    base: str
    rank: int
    tower: bool


def model_card(info: ModelInfo, processor: Any, run: Path, adapter: AdapterFacts | None = None) -> str:
    """Markdown with what is known of the model; what is not known is said to be so."""
    import transformers
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    asked = prompts.user_text("", "cot", info.rationales or info.stage == "base").strip()
    system = prompts.system_text(info.box_space)
    return environment.get_template("card.md.jinja").render(
        **asdict(info),
        **_example(info, processor),
        **_request(system, f"{_QUESTION} {asked}"),
        adapter=adapter,
        version=__version__,
        transformers=transformers.__version__,
        chosen=_chosen(run),
        space_words=_SPACE[info.box_space],
        formula=_FORMULA[info.box_space],
        system=system,
        asked=asked,
        with_rationale=prompts.user_text("", "cot", True).strip(),
        without_rationale=prompts.user_text("", "cot", False).strip(),
        trained=_trained(info),
        patch=processor.image_processor.patch_size,
        merge=processor.image_processor.merge_size,
        quoted=json.dumps,
    )


def _chosen(run: Path) -> str:
    result = run / "result.json"
    if not result.is_file():
        return "unknown"
    data = read_json(result)
    # Runs of before it was written down say nothing.
    last = ", its last step" if data.get("choose") == "last" else ""
    return f"dev: joint {data['dev/joint']:.4f} at step {data['best_step']}{last}"


def _trained(info: ModelInfo) -> str:
    if info.stage == "base":
        return "Which of the two this base model was shown is not known."
    if info.rationales and info.direct_answers:
        return "The first asks for a rationale, the second for none; it was trained on both."
    which, other = ("first", "without") if info.rationales else ("second", "with")
    return f"It was trained on the {which} alone: do not ask it for a reply {other} a rationale."


def _example(info: ModelInfo, processor: Any) -> dict[str, Any]:
    """A box of :data:`_FRAME` as the model writes it, and what it is in source pixels."""
    view = view_of(processor, *_FRAME)
    box = codec.to_model(_BOX_PX, info.box_space, view)
    pixels = [round(value, 2) for value in codec.to_px(box, info.box_space, view)]
    return {"view": view, "example_model": list(box), "example_px": pixels}


def _request(system: str, text: str) -> dict[str, str]:
    """A request in the OpenAI protocol, in two halves: what stands before and behind the image's base64 text.

    Raises:
        ValueError: for texts that would end the shell's quotes in which they stand.
    """
    marker = "IMAGE"
    shown = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{marker}"}}]
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": [*shown, {"type": "text", "text": text}]},
    ]
    body = json.dumps({"model": "surgery-r1", "temperature": 0, "max_tokens": 256, "messages": messages})
    if "'" in body:
        raise ValueError("a prompt with an apostrophe does not fit into the card's shell line")
    head, tail = body.split(marker)
    return {"request_head": head, "request_tail": tail}
