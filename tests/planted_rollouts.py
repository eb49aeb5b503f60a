"""A run folder of RFT with groups that are known to be what the viewer's filters look for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery_r1._util.files import write_json, write_jsonl
from surgery_r1.codec import View, render, to_model
from surgery_r1.records import AnnotatedObject
from surgery_r1.rewards import REWARDS, Truth
from surgery_r1.train.rollouts.files import write_rollouts
from surgery_r1.train.rollouts.record import group_record

VIEW = View(640, 512, 560, 448)
FORCEPS, STAPLER = (40.0, 40.0, 240.0, 200.0), (400.0, 300.0, 600.0, 480.0)
OBJECTS = (
    AnnotatedObject("bipolar_forceps", "Idle", "left-top", FORCEPS),
    AnnotatedObject("stapler", "Cutting", "right-bottom", STAPLER),
)
CLASSES = (("state", ("Idle", "Cutting", "Grasping")), ("location", ("left-top", "right-bottom")))
WEIGHTS = {"format": 0.5, "answer": 1.0, "box": 1.0}


def truth(number: int = 0) -> Truth:
    return Truth(
        sample_id=f"endovis18/seq_2/frame{number:03d}/0",
        task="cot",
        reasoning=True,
        kind="state",
        subject="bipolar_forceps",
        accepted=(("Idle", FORCEPS),),
        width=640,
        height=512,
        objects=OBJECTS,
        location_rule=None,
        agreement=None,
        view=VIEW,
        box_space="norm1000",
        classes=CLASSES,
    )


def reply(ends_at: str | None = "Idle", answer: str = "Idle", box: Sequence[float] = FORCEPS) -> str:
    said = None if ends_at is None else f"the jaws rest, so its state is {ends_at}"
    return render(said, answer, to_model(box, "norm1000", VIEW))


RIGHT = reply()
NEARLY = reply(box=(40, 40, 240, 180))
#: Filter of the viewer -> the replies of a group that it alone must find.
PLANTED: dict[str, list[str]] = {
    "disagreement": [RIGHT, NEARLY, reply("Grasping"), NEARLY],
    "wrong referent": [RIGHT, NEARLY, reply("Cutting", "Cutting", STAPLER), NEARLY],
    "format lost": [RIGHT, NEARLY, reply(None), NEARLY],
    "right answer, wrong box": [RIGHT, NEARLY, reply(box=(40, 40, 110, 160)), NEARLY],
    "all equal": [RIGHT] * 4,
    "nothing": [RIGHT, NEARLY, reply(box=(40, 40, 240, 190)), reply(box=(40, 60, 240, 200))],
}
#: No worse group than this one.
WORST = ["no idea", "<b>none</b>", "<box>[60, 80, 150, 300]</box>", "<answer>Cutting</answer>"]


def group(step: int, question: str, texts: Sequence[str], number: int = 0, flip: str = "none") -> dict[str, Any]:
    of = truth(number)
    rewards = {name: [float(REWARDS[name](text, of) or 0.0) for text in texts] for name in WEIGHTS}
    total = [sum(rewards[name][i] for name in WEIGHTS) for i in range(len(texts))]
    advantages = [value - sum(total) / len(total) for value in total]
    shown = {"question": question, "frame": f"endovis18/seq_2/frame{number:03d}", "flip": flip}
    return group_record(step, shown, of, texts, rewards, advantages, WEIGHTS)


def planted_run(folder: Path, dataset_sha256: str = "0" * 64) -> Path:
    """Steps 1 and 6 with the planted groups, each asked by the name of its filter, and step 11 with the worst one."""
    for step in (1, 6):
        groups = [group(step, f"{name}?", texts, number) for number, (name, texts) in enumerate(PLANTED.items())]
        write_rollouts(folder, step, groups)
    write_rollouts(folder, 11, [group(11, "worst?", WORST, 2, "horizontal")])
    log = [
        {"step": i, "stage": "rft", "reward": 0.5 + i / 50, "rewards/box/mean": i / 20, "rewards/box/std": 0.1}
        for i in range(1, 12)
    ]
    write_jsonl(folder / "metrics.jsonl", log)
    write_json(folder / "run.json", {"stage": "rft", "dataset_sha256": dataset_sha256})
    return folder
