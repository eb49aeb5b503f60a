"""The docs site and the CI file of a public host, as far as they can be read without the tools that use them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("not a checkout", allow_module_level=True)


def site() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, str):
                yield value
            else:
                yield from pages(value)


def test_the_menu_has_every_page_once():
    listed = [page for page in pages(site()["nav"]) if not page.startswith("repository/")]
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_pages_from_outside_docs_are_linked_to_from_within():
    """The site has such a page only because some page links to its file."""
    outside = [page.removeprefix("repository/") for page in pages(site()["nav"]) if page.startswith("repository/")]
    linked = {
        (path.parent / target).resolve()
        for path in DOCS.rglob("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    }
    assert outside and not [page for page in outside if (ROOT / page) not in linked]


def test_the_menu_has_four_parts():
    assert [next(iter(part)) for part in site()["nav"]] == ["Start here", "How to", "Reference", "Explanation"]


def test_the_site_asks_nobody_else():
    config = site()
    assert config["theme"]["font"] is False
    assert not {"repo_url", "extra", "extra_css", "extra_javascript"} & set(config)
    # A tag such as !!python/name would not have been read here.
    assert (ROOT / config["hooks"][0]).is_file()


def test_what_the_reference_shows_is_public():
    """Names after ``:::`` are in the source, and what ``surgery_r1`` offers is among them."""
    shown = {
        name
        for path in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.M)
    }
    import surgery_r1

    for name in shown:
        assert not any(part.startswith("_") for part in name.split(".")), name
    last = {name.rpartition(".")[2] for name in shown}
    assert set(surgery_r1.__all__) - {"__version__", "rewards"} <= last
    functions = {name for name in surgery_r1.rewards.__all__ if name.islower()} - {"reward_named"}
    assert functions <= last


def test_the_extra_is_pinned():
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {re.split(r"[<>=\[]", need)[0].lower() for need in PROJECT["optional-dependencies"]["docs"]}
    assert names <= pins
    assert not any("mkdocs" in need for need in PROJECT["optional-dependencies"]["test"])


# ------------------------------------------------------------------------------------------------------------- CI


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    # make alone, so that what a host does can be done on any machine.
    assert runs and all(re.fullmatch(r"make [a-z-]+", run) for run in runs)
    assert {run.split()[1] for run in runs} <= targets()
    assert {"lint", "test"} <= {run.split()[1] for run in runs}
    # YAML reads the key "on" as true.
    assert {"push", "pull_request"} <= set(workflow[True])
    assert "secrets" not in text.replace("No secrets", "") and workflow["permissions"] == {"contents": "read"}


def test_workflows_use_versions_that_the_package_takes():
    assert WORKFLOWS
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        versions = jobs["test"]["strategy"]["matrix"]["python"]
        # Text: YAML reads 3.10 without quotes as 3.1.
        assert all(isinstance(version, str) for version in versions)
        assert min(tuple(map(int, version.split("."))) for version in versions) == least
