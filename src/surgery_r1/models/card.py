"""The model card that ``export`` writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from surgery_r1 import __version__
from surgery_r1._util.files import read_json
from surgery_r1.models.info import ModelInfo

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {base_model}
tags: [surgical-vqla, surgery-r1]
---
# A Surgery-R1 model (stage: {stage})

**Research use only.** Not a medical device; not for diagnosis, treatment or use during surgery.

Answers a question about an endoscopic frame and points at what shows the answer. Trained with surgery-r1 {version},
an open implementation of the method of *Surgery-R1* (arXiv 2506.19469) by other people than the paper's authors.

| | |
|---|---|
| base model | `{base}` (sha256 of weights and configuration {base_sha256}); its licence applies to these weights |
| dataset sha256 | {dataset_sha256} |
| box space | `{box_space}`: {space_words} |
| pixel limits | {min_pixels} to {max_pixels} pixels of the resized image; serve with the same |
| codec / prompt version | {codec_version} / {prompt_version} |
| chosen on | {chosen} |

Ask it with the prompts of `surgery_r1.prompts` and read its replies with `surgery_r1.codec`:

    surgery-r1 ask IMAGE "Where is bipolar_forceps located?" --model THIS_FOLDER
    vllm serve THIS_FOLDER --mm-processor-kwargs '{{"min_pixels": {min_pixels}, "max_pixels": {max_pixels}}}'
"""

_SPACE = {
    "pixels": "pixels of the resized image",
    "norm1000": "0 to 1000 along each axis",
    "norm100": "0 to 100 along each axis",
    "source": "pixels of the source frame",
}


def model_card(info: ModelInfo, run: Path) -> str:
    """Markdown with what is known of the model; what is not known is said to be so."""
    result = run / "result.json"
    chosen = "unknown"
    if result.is_file():
        data = read_json(result)
        chosen = f"dev: joint {data['dev/joint']:.4f} at step {data['best_step']}"
    facts = asdict(info) | {"base": info.base_model, "space_words": _SPACE[info.box_space]}
    facts |= {"base_sha256": info.base_sha256 or "unknown", "dataset_sha256": info.dataset_sha256 or "none"}
    return _CARD.format(**facts, version=__version__, chosen=chosen)
