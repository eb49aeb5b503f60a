"""One process of a run that tests launch: ``python ranks_worker.py JOB``, alone or under torchrun.

JOB is a JSON file: ``stage``, ``data`` (a dataset folder), ``out``, ``changes`` (of :func:`small.small`), and what the
test wants to happen: ``lora``, ``base``, ``resume``, ``uneven`` (rows or completions of 20 and 200 tokens, and the
gradients of the first step to ``gradients``), ``signal`` = [signal, rank, step], ``fail`` = [rank, step],
``crash`` = [rank, step]. ``jobs`` = a list of such, run one after the other: starting costs more than a short run;
``spread_alone`` beside it: see :func:`spread_alone`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from small import small
from transformers import TrainerCallback

from surgery_r1.cli.messages import shown_messages
from surgery_r1.data.dataset import open_dataset
from surgery_r1.errors import OtherProcessFailed, SurgeryR1Error
from surgery_r1.train import fit, ranks, shards
from surgery_r1.train.checkpoints import resumable
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer
from surgery_r1.train.stage import train

#: Tokens of the replies of an uneven step.
SHORT, LONG = 20, 200


class Events(TrainerCallback):
    """Does what a job asks for, before this project's own callbacks are told."""

    def __init__(self, job: dict) -> None:
        self.job = job

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if "gradients" in self.job and state.global_step == 0:
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            # Of weights in parts, a call of all ranks.
            found = {name: getattr(g, "full_tensor", lambda g=g: g)().contiguous() for name, g in grads.items()}
            if ranks.index() == 0:
                save_file(found, self.job["gradients"])

    def on_step_begin(self, args, state, control, **_):
        number, rank, step = self.job.get("signal", (0, -1, -1))
        if [ranks.index(), state.global_step] in ([rank, step], self.job.get("fail"), self.job.get("crash")):
            Path(self.job["out"]).with_suffix(".event").touch()
        if (ranks.index(), state.global_step) == (rank, step):
            os.kill(os.getpid(), getattr(signal, number))
        if [ranks.index(), state.global_step] == self.job.get("fail"):
            raise SurgeryR1Error("a frame cannot be read", where="frame003.png", fix="copy it again")
        if [ranks.index(), state.global_step] == self.job.get("crash"):
            raise KeyError("a mistake of ours, which nobody catches")


def uneven_rows(dataset):
    """Six rows on frames of their own, every second one with a long rationale; a step of four leaves two over."""
    rows = {dataset.samples[row.sample_id].image: row for row in dataset.train_rows() if row.task == "cot"}
    lengths = [SHORT, LONG] * 3
    dataset.train_rows = lambda *_: [
        replace(row, reasoning="left " * length) for row, length in zip(rows.values(), lengths, strict=False)
    ]


def given_completions(trainer, prompts, *_args, **_kwargs):
    """In place of what a model would say: short and long replies, alike wherever a prompt is asked."""
    replies = []
    for number, prompt in enumerate(prompts):
        # Groups stand together: two different frames may have prompts of the same tokens.
        place = number % trainer.num_generations
        tokens = torch.Generator().manual_seed(sum(prompt) + place)
        replies.append(torch.randint(300, 900, ((SHORT, LONG)[place % 2],), generator=tokens).tolist())
    return replies, None


def spread_alone() -> None:
    """Let one process spread a model over itself, which is refused to users: it rounds as several do."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    shards.asked_for = lambda configured: configured


def main(job: dict) -> None:
    config = small(**job.get("changes", {}))
    config = replace(config, lora=replace(config.lora, enabled=job.get("lora", False)))
    dataset = open_dataset(Path(job["data"]))
    if job.get("uneven"):
        uneven_rows(dataset)
        SharedFrameGRPOTrainer._generate_single_turn = given_completions

    def watched(kind):
        class Watched(resumable(kind)):
            def __init__(self, *args, callbacks, **kwargs):
                super().__init__(*args, callbacks=[Events(job), *callbacks], **kwargs)

        return Watched

    fit.resumable = watched
    more = {"base": job.get("base"), "resume": job.get("resume", False), "quiet": True}
    train(job["stage"], config, dataset, Path(job["out"]), **more)


if __name__ == "__main__":
    try:
        with shown_messages(debug=False):
            given = json.loads(Path(sys.argv[1]).read_text())
            if given.get("spread_alone"):
                spread_alone()
            for job in given.get("jobs", [given]):
                main(job)
            ranks.leave()
    except OtherProcessFailed as error:
        sys.stderr.write(f"told: {error}\n" if error.tell else "")
        sys.exit(2)
    except SurgeryR1Error as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
