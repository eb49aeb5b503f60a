"""Path patterns of adapters: ``videos/{sequence}/{frame}.png``, with ``*``, ``**`` and names for parts of a path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_]\w*")
#: What archives and systems leave behind; nothing in there is data.
SHADOW = "__macosx"


class PathPattern:
    """A pattern for paths below a folder, written with ``/``; case does not count.

    ``*`` is any part of a name, ``**/`` any folders (or none), ``{name}`` a part of a name that is given back, and
    ``{name:regex}`` one that must match. A name that stands twice must be the same both times.

    >>> PathPattern("**/{sequence:seq_[0-9]+}/{frame}.png").match("a/b/seq_3/f07.png")
    {'sequence': 'seq_3', 'frame': 'f07'}

    Raises:
        ValueError: for braces that do not fit together, or a bad regular expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        try:
            self._pattern = re.compile("".join(self._parts(text)), re.I)
        except re.error as error:
            raise ValueError(f"{text!r}: {error}") from None

    def match(self, path: str) -> dict[str, str] | None:
        """The named parts of a path, None when it does not match."""
        match = self._pattern.fullmatch(path)
        return match.groupdict() if match else None

    def _parts(self, text: str) -> Iterator[str]:
        at = 0
        while at < len(text):
            if text.startswith("**/", at):
                yield "(?:.+/)?"
                at += 3
            elif text.startswith("**", at):
                yield ".*"
                at += 2
            elif text[at] == "*":
                yield "[^/]*"
                at += 1
            elif text[at] == "{":
                end = _closing(text, at)
                yield self._named(text[at + 1 : end])
                at = end + 1
            else:
                yield re.escape(text[at])
                at += 1

    def _named(self, inside: str) -> str:
        name, _, regex = inside.partition(":")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.text!r}: {{{inside}}} has no name")
        if name in self.names:
            return f"(?P={name})"
        self.names.append(name)
        return f"(?P<{name}>{regex or '[^/]+?'})"


def _closing(text: str, at: int) -> int:
    """Place of the brace that closes the one at ``at``; a regex may have braces of its own."""
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"{text!r}: a brace is not closed")


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative and with ``/``, sorted; hidden and shadow files left out.

    Whatever is no folder is listed, also a dangling link or a pipe: whoever opens it says what is wrong with it.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part.lower() == SHADOW for part in parts)
        if not hidden and not path.is_dir():
            found.append("/".join(parts))
    return found
