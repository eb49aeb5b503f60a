"""``surgery-r1 predict`` and ``surgery-r1 ask``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1.cli.data import say
from surgery_r1.train.run_folder import stay_offline


@dataclass
class PredictCommand:
    """PredictCommand every question of a split; resumable after a kill, raw text is kept."""

    model: str
    """A model folder, a run folder (its best), or tiny."""
    data: Path
    """A dataset folder."""
    split: Literal["train", "dev", "val", "test"]
    """The split to predict."""
    out: Path
    """The predictions.jsonl to write."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    batch_size: int = 32
    """Prompts per generation batch."""
    max_new_tokens: int = 256
    """Upper bound of a reply, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights as saved, or converted."""
    no_reasoning: bool = False
    """Ask for answer and box without reasoning."""
    limit: int = 0
    """PredictCommand only that many questions, evenly spread; scoring counts the others as wrong."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(self.allow_hub)
        from surgery_r1.data.dataset import open_dataset

        # Before the libraries are imported, which takes seconds: a wrong path is told at once.
        dataset = open_dataset(self.data, images=self.images)

        from surgery_r1.stages import run_predict

        done = run_predict(
            self.model,
            dataset,
            self.split,
            self.out,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            reasoning=not self.no_reasoning,
            limit=self.limit,
            dtype=self.dtype,
            allow_hub=self.allow_hub,
            progress=show_progress,
        )
        say(f"{done:,} questions predicted: {self.out}")
        return 0


@dataclass
class Ask:
    """Ask one question about one image: reasoning, answer, box, and a picture with the box."""

    image: tyro.conf.Positional[Path]
    """The frame."""
    question: tyro.conf.Positional[str]
    """Such as "Where is bipolar_forceps located?"."""
    model: str = "tiny"
    """A model folder, a run folder, or tiny (the untrained base, which cannot do the task)."""
    out: Path | None = None
    """The picture to write; IMAGE.answer.png in the current folder by default."""
    no_reasoning: bool = False
    """Ask for answer and box without reasoning."""
    max_new_tokens: int = 256
    """Upper bound of the reply, in tokens."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(self.allow_hub)
        from surgery_r1.inference import ask

        picture = self.out or Path(f"{self.image.stem}.answer.png")
        reply = ask(
            self.image,
            self.question,
            self.model,
            picture=picture,
            reasoning=not self.no_reasoning,
            max_new_tokens=self.max_new_tokens,
            allow_hub=self.allow_hub,
        )
        if self.json:
            say(dump_json({**reply.to_json(), "picture": str(picture)}, indent=2))
            return 0
        say(f"reasoning: {reply.reading.rationale or '(none)'}")
        say(f"answer:    {reply.reading.answer or '(none)'}")
        box = reply.reading.box_px
        say("box:       " + ("(none)" if box is None else ", ".join(f"{value:.1f}" for value in box) + "  (pixels)"))
        if reply.reading.problems:
            say(f"problems:  {', '.join(reply.reading.problems)}; the model wrote {reply.text!r}")
        say(f"picture:   {picture}")
        return 0


def show_progress(done: int, total: int) -> None:
    """A counter on standard error: live on a terminal, the last line alone elsewhere."""
    if sys.stderr.isatty() or done == total:
        sys.stderr.write(f"\rpredicted {done:,} of {total:,}{chr(10) if done == total else ''}")
        sys.stderr.flush()
