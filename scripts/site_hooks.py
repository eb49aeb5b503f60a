"""What mkdocs is told beside ``mkdocs.yml``: links that leave ``docs/``, and a look that no page loads from elsewhere.

Pages of ``docs/`` link to files of the repository (``../configs/tiny.toml``), so that any code host can show them. On
the site each such file is a page of its own below ``repository/``, and so is what those link to.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
#: A warning here fails ``mkdocs build --strict``.
logger = logging.getLogger("mkdocs.hooks.site")

LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".jinja": "jinja", ".cff": "yaml"}
#: Code, in which nothing is a link, or the target of a link or picture.
_LINK = re.compile(
    r"^(?P<fence>```+).*?^(?P=fence)|(?P<tick>`+)[^`].*?(?P=tick)|\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)
#: What a browser fetches by itself.
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)
_BAR = re.compile(r"<code>[^<]*\\\|[^<]*</code>")
_ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):<code>~?")


def uri_of(path: str) -> str:
    """Where the site has a file of the repository, given as ``folder/name``."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def path_of(uri: str) -> str:
    """The file of the repository that a page of the site shows: the other way of :func:`uri_of`."""
    if not uri.startswith("repository/"):
        return f"docs/{uri}"
    path = uri.removeprefix("repository/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def target_of(page: str, link: str) -> str | None:
    """The file or folder of the repository that a link of a page leads to; None for all else.

    A folder with a README is that README.
    """
    if re.match(r"[a-z]+:|#|/", link):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
    if path.startswith("..") or not (ROOT / path).exists():
        return None
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def links(page: str, markdown: str) -> Iterator[str]:
    """What a page links to outside ``docs/``, as paths of the repository."""
    for match in _LINK.finditer(markdown):
        target = match["target"] and target_of(page, match["target"])
        if target and not target.startswith("docs/"):
            yield target


def shown(path: str) -> str:
    """The page of a file or folder of the repository."""
    place = ROOT / path
    if path.endswith(".md"):
        return place.read_text(encoding="utf-8")
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith((".", "__")))
        # Links of a page count from the folder of its file, which this page has not.
        return "\n".join([f"# {path}/", "", *(f"- [{name}]({name})" for name in names)])
    text = place.read_text(encoding="utf-8").rstrip("\n")
    return f"# {path}\n\n`````{LANGUAGES.get(place.suffix, 'text')}\n{text}\n`````\n"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file that is linked to outside ``docs/``."""
    todo = [(path_of(file.src_uri), file.content_string) for file in files.documentation_pages()]
    while todo:
        page, markdown = todo.pop()
        for path in links(page, markdown):
            uri = uri_of(path)
            if files.get_file_from_path(uri) is None:
                text = shown(path)
                files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
                todo.append((f"{path}/index.md" if (ROOT / path).is_dir() else path, text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them."""
    uri = page.file.src_uri
    path = path_of(uri)

    def rewritten(match: re.Match[str]) -> str:
        target = match["target"] and target_of(path, match["target"])
        if not target:
            return match[0]
        _, mark, anchor = match["target"].partition("#")
        return f"]({posixpath.relpath(uri_of(target), posixpath.dirname(uri) or '.')}{mark}{anchor})"

    return _LINK.sub(rewritten, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings without the roles before names in code, and bars in the code of tables without the backslash."""
    return _BAR.sub(lambda code: code[0].replace(r"\|", "|"), _ROLE.sub("<code>", html))


def on_post_build(config: Any) -> None:
    """Warn of every page that loads something from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        for match in _LOADED.finditer(path.read_text(encoding="utf-8")):
            logger.warning("%s loads from elsewhere: %s", path, match[0])
