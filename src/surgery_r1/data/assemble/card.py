"""The dataset card: what the folder holds, where it comes from, and what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery_r1 import vocab


def dataset_card(manifest: dict[str, Any]) -> str:
    """The text of the folder's ``README.md``; it follows from the manifest alone."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = "{:,}".format
    endovis = all(source.startswith("endovis") for source in manifest["sources"])
    rows, asked = manifest["rows"], manifest["recipe"]["rows"]
    boxless = bool(rows["total"] and asked["grounding_qa"] and not rows["grounding_qa"])
    template = environment.get_template("card.md.jinja")
    return template.render(**manifest, endovis=endovis, boxless=boxless, splits=vocab.SPLITS)
