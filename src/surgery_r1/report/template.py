"""A page as one file: template, styles and script in one, and a policy under which nothing else runs or loads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from surgery_r1 import __version__
from surgery_r1.evaluate.tables import excludes_zero, facts, format_interval, number, signed

_HERE = Path(__file__).parent


def rendered(template: str, styles: Sequence[str], scripts: Sequence[str], **context: Any) -> str:
    """The page as text.

    Args:
        template, styles, scripts: names of files beside this one; the scripts become one, in this order.
        context: what the template is given beside ``style``, ``script``, ``script_hash`` and ``version``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Model text, labels and folder names are untrusted: escaped here, and only our own script may run at all.
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": number, "signed": signed}
    environment.filters |= {"interval": format_interval, "excludes_zero": excludes_zero, "facts": facts}
    script = _joined(scripts)
    page = environment.get_template(template).render(
        **context,
        version=__version__,
        style=Markup(_joined(styles)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _joined(names: Sequence[str]) -> str:
    return "\n".join((_HERE / name).read_text(encoding="utf-8").strip() for name in names)
