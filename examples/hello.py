"""Ask a model about a frame.

    python examples/hello.py FRAME.png "Where is bipolar_forceps located?" --model demo/rft

Without arguments it asks the shipped base, which points at things but was never taught to answer.
"""

import argparse
from pathlib import Path

import surgery_r1

FRAME = Path(__file__).parent / "own_frames/frames/case_a/000000.jpg"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?", default=FRAME)
parser.add_argument("question", nargs="?", default="Where is bipolar_forceps located?")
parser.add_argument("--model", default="tiny")
parser.add_argument("--picture", type=Path, default=Path("hello.png"))
arguments = parser.parse_args()

model = surgery_r1.load(arguments.model)
reply = model.ask(arguments.image, arguments.question)
print("rationale:", reply.rationale)
print("answer:   ", reply.answer)
print("box:      ", reply.box_px, "in pixels of the frame")
print("problems: ", ", ".join(reply.problems) or "none")
reply.picture().save(arguments.picture)
