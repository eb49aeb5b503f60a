"""Regenerate the fact table of the drawn scenes from the public record text.

    python scripts/make_scene_facts.py endovis18_train_records.txt

The text (one line a frame, from the MIT-licensed Surgical-VQLA repository) keeps sequences in contiguous blocks, but
not which block is which sequence: we cut it into eleven equal blocks, one for each training sequence.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1.synthetic import statistics as records

HEADER = (
    "# Facts counted from the public record text of the MIT-licensed Surgical-VQLA repository: how often each set",
    "# of (tool, state, location) labels occurs in each of eleven equal blocks of its 1,560 EndoVis-18 train frames.",
    "# Made by scripts/make_scene_facts.py. Columns: sequence, frames, labels. A label is a tool digit, a state letter",
    "# and a location digit, each an index (0 or a first) into vocab.TOOLS, vocab.STATES and vocab.LOCATIONS.",
)

_TOOL = "|".join(re.escape(name.replace("_", " ")) for name in vocab.TOOLS)
_STATE = "|".join(re.escape(name.replace("_", " ").lower()) for name in sorted(vocab.STATES, key=len, reverse=True))
_ACTION = re.compile(rf"action done by ({_TOOL}) is ({_STATE})\b")
_PLACE = re.compile(rf"({_TOOL}) is located at ({'|'.join(vocab.LOCATIONS)})")


def read_text(path: Path) -> list[records.Record]:
    """Frames of the text as tuples of (tool, state, location); its first line is not a record."""
    frames = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.strip():
            continue
        places = dict(_PLACE.findall(line))
        actions = _ACTION.findall(line)
        # "suction" is a tool and a state; the tool order of the line is the order of its state questions.
        frames.append(tuple((_NAMES_TOOL[tool], _NAMES_STATE[state], places[tool]) for tool, state in actions))
        if len(places) != len(actions):
            raise SystemExit(f"{path}: a line has {len(actions)} states and {len(places)} places: {line[:200]}")
    return frames


_NAMES_TOOL = {name.replace("_", " "): name for name in vocab.TOOLS}
_NAMES_STATE = {name.replace("_", " ").lower(): name for name in vocab.STATES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=records.TABLE)
    args = parser.parse_args()
    frames = read_text(args.text)
    n = len(vocab.TRAIN_SEQUENCES)
    lines = list(HEADER)
    for i, sequence in enumerate(vocab.TRAIN_SEQUENCES):
        block = Counter(frames[i * len(frames) // n : (i + 1) * len(frames) // n])
        for record, count in sorted(block.items(), key=lambda item: records.encode(item[0])):
            lines.append(f"{sequence}\t{count}\t{records.encode(record)}")
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"{args.out}: {len(frames)} frames, {sum(1 + 2 * len(f) for f in frames)} questions, {len(lines)} lines")


if __name__ == "__main__":
    main()
