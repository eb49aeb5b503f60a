"""Which image folder belongs to which labels, chosen per sequence and never silently."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from surgery_r1.data.formats.endovis_scan import ImageTree, LabelFile, Layout, TreeKey
from surgery_r1.data.formats.validation import ValidationIssue


def pair(layout: Layout) -> tuple[dict[TreeKey, ImageTree], list[ValidationIssue]]:
    """The image folder of each labelled sequence, and warnings about other candidates and unlabelled images.

    A folder that holds labelled frames wins over one that does not; then one outside a test archive (its ``seq_1`` is
    another recording than the labelled ``seq_1``); then one under the images root; then the labels' nearest.
    """
    labels: dict[TreeKey, list[LabelFile]] = defaultdict(list)
    for label in layout.labels:
        labels[label.tree_key].append(label)
    trees: dict[TreeKey, list[ImageTree]] = defaultdict(list)
    for tree in layout.trees:
        for key in tree.sequences():
            trees[key].append(tree)
    chosen: dict[TreeKey, ImageTree] = {}
    warnings: list[ValidationIssue] = []
    for key, files in sorted(labels.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        stems = {label.stem for label in files}
        ranked = sorted(trees.get(key, ()), key=lambda tree: _preference(tree, stems, files[0].path))
        if ranked:
            chosen[key] = ranked[0]
            warnings += _choice_warnings(key, ranked, stems)
    warnings += _unlabelled(layout, labels, chosen, trees)
    return chosen, warnings


def _preference(tree: ImageTree, stems: set[str], label: Path) -> tuple[bool, bool, int, int, str]:
    common = len(os.path.commonpath([os.path.realpath(tree.path), os.path.realpath(label)]))
    return (stems.isdisjoint(tree.files), tree.test_like, tree.root_index, -common, str(tree.path))


def _choice_warnings(key: TreeKey, ranked: list[ImageTree], stems: set[str]) -> Iterable[ValidationIssue]:
    name = f"seq_{key[1]}" if key[1] is not None else "EndoVis-17"
    for other in ranked[1:]:
        if not stems.isdisjoint(other.files):
            value = f"{other.path} also has frames of that name; taken: {ranked[0].path}"
            yield ValidationIssue(str(other.path), None, f"second image folder for {name}", value, "check with --sheet")
    if ranked[0].test_like:
        fix = "the challenge's test archive has another seq_1 than the labelled one: check with --sheet"
        yield ValidationIssue(
            str(ranked[0].path), None, f"images of {name} come from a test folder", "no other was found", fix
        )


def _unlabelled(
    layout: Layout,
    labels: dict[TreeKey, list[LabelFile]],
    chosen: dict[TreeKey, ImageTree],
    trees: dict[TreeKey, list[ImageTree]],
) -> Iterable[ValidationIssue]:
    used = {id(tree) for tree in chosen.values()}
    for tree in layout.trees:
        keys = tree.sequences()
        stems = {label.stem for key in keys for label in labels.get(key, ())}
        bare = len(set(tree.files) - stems)
        # A second folder of a labelled sequence has its own warning.
        if bare and (id(tree) in used or not stems & set(tree.files)):
            value = f"{bare} of {len(tree.files)} images"
            fix = "nothing to do: unclear frames and some sequences were left out of the labels"
            yield ValidationIssue(str(tree.path), None, "images without labels", value, fix)
