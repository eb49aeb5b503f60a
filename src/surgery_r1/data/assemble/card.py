"""The dataset card: what the folder holds, where it comes from, and what it is not."""

from __future__ import annotations

from typing import Any

from surgery_r1 import vocab

_ORIGIN = """\
This is an open re-creation, by a recipe of our own, of the *kind* of set that the Surgery-R1 paper (arXiv 2506.19469)
calls Surgery-R1-54k: rows of Visual-QA, Grounding-QA and chain of thought for each question.
It is not the authors' set, which has not been released; how theirs is composed is not known. On the full EndoVis-18
training labels the paper's name fits 9,014 questions times six, which is 54,084.
"""

_TEMPLATES = """\
`template-1` fills in sentences from the annotations. It is no surgeon and no language model: it says what the labels
say and adds no medical knowledge.
"""

_TEACHER = """\
Reasoning by a language model was kept where it passed the checks below; no surgeon has read it.
"""

_OWN = """\
Questions with {what} on the frames of {sources}, built by a recipe of this project.
"""

_USE = "Research use only; not for clinical decisions.\n"

_USE_ENDOVIS = """\
Frames of the EndoVis challenges need registration, are for research and must not be passed on; labels come from the
Surgical-VQLA authors and carry their own terms. If the frames were drawn by `surgery-r1 data make-scenes`, they are
pictures of nobody and prove machinery, not medicine.
"""


def dataset_card(manifest: dict[str, Any]) -> str:
    """The text of the folder's ``README.md``; it follows from the manifest alone."""
    samples, frames, rows = manifest["samples"], manifest["frames"], manifest["rows"]
    recipe = manifest["recipe"]
    endovis = all(source.startswith("endovis") for source in manifest["sources"])
    boxless = bool(rows["total"]) and not rows["grounding_qa"] and bool(recipe["rows"]["grounding_qa"])
    what = "answers and reasoning, without boxes," if boxless else "answers, boxes and reasoning"
    origin = _ORIGIN if endovis else _OWN.format(what=what, sources=", ".join(manifest["sources"]))
    lines = [f"# {recipe['title']}", "", origin, "## Counts", "", "| split | frames | questions |"]
    lines += ["|---|---:|---:|"]
    lines += [f"| {split} | {frames[split]:,} | {samples[split]:,} |" for split in vocab.SPLITS]
    lines += [f"| all | {frames['total']:,} | {samples['total']:,} |", ""]
    lines.append(
        f"{rows['total']:,} training rows: {rows['visual_qa']:,} Visual-QA, {rows['grounding_qa']:,} Grounding-QA, "
        f"{rows['cot']:,} with reasoning. They cover train and dev; dev is left out of training unless asked for. "
        "Val and test have no rows."
    )
    each = ", ".join(f"{count} {task}" for task, count in recipe["rows"].items())
    lines += ["", f"The recipe makes of each question: {each} (seed {recipe['seed']})."]
    lines += ["", "A question without a box becomes no Grounding-QA row."] if boxless else []
    lines += ["", "## Reasoning", "", *_reasoning(manifest)]
    lines += ["", "## Sequences", "", "| source | split | sequences, with their frames |", "|---|---|---|"]
    for source, facts in manifest["sources"].items():
        for split, sequences in facts["sequences"].items():
            listed = ", ".join(f"{name} ({facts['frames_of_sequence'][name]:,})" for name in sequences)
            lines.append(f"| {source} | {split} | {listed} |")
    lines += ["", "## Classes", "", "| source | kind | classes |", "|---|---|---|"]
    for source, facts in manifest["sources"].items():
        lines += [f"| {source} | {kind} | {', '.join(names)} |" for kind, names in facts["answers"].items()]
    lines += _location_rule(manifest["location_rule"])
    lines += ["", "## Left out", ""]
    skipped = {reason: count for reason, count in manifest["skipped"].items() if count}
    lines += [f"- {reason}: {count:,}" for reason, count in skipped.items()] or ["Nothing was left out as faulty."]
    where = (
        "copied into `images/`" if manifest["recipe"]["embed_images"] else "referenced, not copied (see the manifest)"
    )
    lines += ["", "## Files", "", f"Images are {where}. Boxes are 0-based xyxy pixels of the source frame.", ""]
    lines += [f"- `{name}` sha256 {digest}" for name, digest in manifest["sha256"].items()]
    lines += ["", "## Use and licence", "", _USE + (_USE_ENDOVIS if endovis else "")]
    return "\n".join(lines)


def _location_rule(rule: dict[str, Any]) -> list[str]:
    """The measured rule; nothing where no label asks for a place."""
    if not rule["n"]:
        return []
    lines = ["", "## What top and bottom mean", ""]
    lines.append("Public label generators disagree, so the rule was measured on the location labels:")
    lines += ["", "| labels | rule | agreement | labels measured |", "|---|---|---:|---:|"]
    for name, facts in (("all", rule), *rule["by_source"].items()):
        share = "" if facts["agreement"] is None else f"{facts['agreement']:.4f}"
        lines.append(f"| {name} | {facts['rule'] or 'none'} | {share} | {facts['n']:,} |")
    return lines


def _reasoning(manifest: dict[str, Any]) -> list[str]:
    """Who wrote it, what was rejected and why, and where frames went."""
    facts = manifest["recipe"]["writers"]
    lines = [_TEMPLATES] if any(not about for about in facts.values()) else []
    lines += [_TEACHER] if any(facts.values()) else []
    lines += ["| writer | wanted | accepted | at the first attempt | dropped |", "|---|---:|---:|---:|---:|"]
    for name, counts in manifest["reasoning"].items():
        numbers = " | ".join(f"{counts[key]:,}" for key in ("asked", "accepted", "at_first_attempt", "dropped"))
        lines.append(f"| {name} | {numbers} |")
    for name, counts in manifest["reasoning"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected"].items())
        lines += ["", f"Attempts of {name} that were rejected: {reasons}."] if reasons else []
    for name, about in facts.items():
        if about:
            lines += ["", f"{name} was sent: {'; '.join(about['sent'])}."]
    return lines
