"""What is timed, each in the plain way (stock TRL or transformers) and in ours, on the same rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from surgery_r1 import prompts
from surgery_r1.bench import shapes
from surgery_r1.bench.clock import Clock
from surgery_r1.bench.operations import forest_pairs, row_pairs
from surgery_r1.bench.shapes import Work
from surgery_r1.models import tree, tree_attention
from surgery_r1.models.vision_cache import keep_frozen_features

BOX_SPACE = "norm100"


class Job:
    """One way of one benchmark, set up and ready to be run again and again.

    Attributes:
        layouts: of the forests of the last run, in our way.
    """

    def __init__(self, work: Work, way: str) -> None:
        self.work, self.ours = work, way == "ours"
        if work.threads:
            torch.set_num_threads(work.threads)
        self.processor = shapes.build_processor(work, deduplicate=self.ours)
        self.model = shapes.build_model(work, self.processor.tokenizer)
        if work.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.ours:
            assert tree_attention.enable(self.model)
        # Ours reads a frozen tower through its cache, which keeps nothing from run to run here.
        self.features = keep_frozen_features(self.model) if self.ours else None
        self.clock = Clock(work.device)
        self.clock.wrap(self.model.model.visual, "forward", "vision")
        self.layouts: list[tree.Layout] = []
        if self.ours:
            grow = tree.grow

            def recorded(*args: Any, **kwargs: Any) -> tree.Forest:
                forest = grow(*args, **kwargs)
                self.layouts.append(forest.layout)
                return forest

            tree.grow = recorded
        self.folder = tempfile.TemporaryDirectory()
        self.image = shapes.frame(work)
        self.texts = shapes.questions(work, self.processor)

    def run(self) -> dict[str, float]:
        """Run once; seconds in all ("step"), of what is compared ("compared"), and by part."""
        self.clock.parts.clear()
        self.layouts.clear()
        # What was kept from the run before would make this one cheaper than a step of training.
        self.processor.image_processor.__dict__.pop("_kept", None)
        tree_attention.forget_masks()
        if self.features is not None:
            self.features.forget()
        start = self.clock.now()
        self._run()
        seconds = self.clock.now() - start
        self.model.zero_grad(set_to_none=True)
        return {**self.clock.parts, "step": seconds, "compared": self._compared(seconds)}

    def _run(self) -> None:
        raise NotImplementedError

    def _compared(self, seconds: float) -> float:
        return seconds

    def output(self) -> list[Any]:
        """What both ways must agree on, of the last run."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Language-model tokens, query-key pairs, positions projected to the vocabulary, and images, of one run."""
        raise NotImplementedError

    def _forest_counts(self, labels: int) -> dict[str, int]:
        tokens = sum(layout.size for layout in self.layouts)
        pairs = sum(forest_pairs(layout) for layout in self.layouts)
        # Without a GPU TRL projects every position, with one those that have a label.
        return {"tokens": tokens, "pairs": pairs, "heads": labels if self.clock.cuda else tokens, "images": 1}

    def _row_counts(self, rows: int, labels: int) -> dict[str, int]:
        length = self.row_length
        heads = labels if self.clock.cuda else rows * (length - 1)
        return {"tokens": rows * length, "pairs": row_pairs([length]) * rows, "heads": heads, "images": rows}

    @property
    def row_length(self) -> int:
        columns, rows = self.work.grid
        return columns * rows + self.work.prompt_tokens + self.work.completion_tokens

    def _lora(self) -> Any:
        from peft import LoraConfig

        names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
        return LoraConfig(r=16, lora_alpha=32, target_modules=rf".*language_model.*\.({names})")

    def _arguments(self) -> dict[str, Any]:
        """Options that TRL's two config classes share."""
        cuda = self.clock.cuda
        return {
            "output_dir": self.folder.name,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "use_cpu": not cuda,
            "bf16": self.work.dtype == "bfloat16",
            "max_steps": 1_000_000,
            "logging_steps": 1_000_000,
            "gradient_checkpointing": self.work.checkpointing,
        }


class Rft(Job):
    """A GRPO step on replayed rollouts; what is compared is the update (log-probabilities, loss, backward)."""

    def __init__(self, work: Work, way: str) -> None:
        super().__init__(work, way)
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        from surgery_r1.train.shared_frames import SharedFrameGRPOTrainer

        rows = work.questions * work.generations
        self.micro = rows if self.ours else (work.micro_batch or work.generations)
        arguments = GRPOConfig(
            **self._arguments(),
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=rows // self.micro,
            num_generations=work.generations,
            max_completion_length=work.completion_tokens,
            beta=0.0,
        )
        conversations = [
            [
                {"role": "system", "content": prompts.system_text(BOX_SPACE)},
                {"role": "user", "content": prompts.user_text(text)},
            ]
            for text in self.texts
        ]
        self.batch = [
            {"prompt": conversation, "images": [self.image]}
            for conversation in conversations
            for _ in range(work.generations)
        ]
        self.replies = shapes.completions(work, rows, seed=1)

        def reward(completions: list[Any], **_: Any) -> list[float | None]:
            # Gold replies of which every other is spoiled: rewards vary within a group.
            return [float(i % 2) for i in range(len(completions))]

        kind: Any = SharedFrameGRPOTrainer if self.ours else GRPOTrainer
        trainer = kind(
            model=self.model,
            args=arguments,
            reward_funcs=[reward],
            train_dataset=Dataset.from_list([{"prompt": c} for c in conversations]),
            processing_class=self.processor,
            peft_config=self._lora() if work.lora else None,
        )
        trainer.current_gradient_accumulation_steps = rows // self.micro
        trainer._generate_single_turn = lambda *_, **__: (self.replies, None)
        self.seen: dict[tuple[int, ...], list[float]] = {}
        self._note(trainer)
        self.clock.wrap(trainer, "_generate_and_score_completions", "preprocess")
        self.clock.wrap(trainer, "compute_loss", "log_probs")
        self.clock.wrap(trainer.accelerator, "backward", "backward")
        trainer.model.train()
        self.trainer = trainer

    def _note(self, trainer: Any) -> None:
        inner: Callable[..., Any] = trainer._get_per_token_logps_and_entropies

        def noted(model: Any, input_ids: Any, attention: Any, keep: int, *args: Any, **kwargs: Any) -> Any:
            result = inner(model, input_ids, attention, keep, *args, **kwargs)
            for ids, values in zip(input_ids[:, -keep:].tolist(), result[0].detach().float().tolist(), strict=True):
                self.seen[tuple(ids)] = values
            return result

        trainer._get_per_token_logps_and_entropies = noted

    def _run(self) -> None:
        trainer = self.trainer
        trainer._step, trainer._buffered_inputs = 0, None
        for _ in range(len(self.batch) // self.micro):
            trainer.training_step(trainer.model, self.batch, None)

    def _compared(self, seconds: float) -> float:
        return self.clock.parts["log_probs"] + self.clock.parts["backward"]

    def output(self) -> list[Any]:
        return [value for reply in self.replies for value in self.seen[tuple(reply)]]

    def counts(self) -> dict[str, int]:
        labels = len(self.replies) * self.work.completion_tokens
        return self._forest_counts(labels) if self.ours else self._row_counts(len(self.replies), labels)


class Sft(Job):
    """A step of SFT on all rows of a frame; what is compared is the update (forward, loss, backward)."""

    def __init__(self, work: Work, way: str) -> None:
        super().__init__(work, way)
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        from surgery_r1.train.frame_packing import FramePackCollator

        tokenizer = self.processor.tokenizer
        # The reply is followed by the end of its turn, two tokens.
        texts = shapes.completions(work, work.questions * work.rows, seed=1)
        replies = [tokenizer.decode(ids[:-2]) for ids in texts]
        # Rows of a question part where the reply is asked for, as those of a dataset do.
        kinds = [(task, reasoning) for reasoning in (True, False) for task in ("visual_qa", "grounding_qa", "cot")]
        users = [
            prompts.user_text(text, *kinds[number % len(kinds)]) for text in self.texts for number in range(work.rows)
        ]
        system = prompts.system_text(BOX_SPACE)
        self.rows = [
            {
                "prompt": [{"role": "system", "content": system}, {"role": "user", "content": user}],
                "completion": [{"role": "assistant", "content": reply}],
                "images": [self.image],
            }
            for user, reply in zip(users, replies, strict=True)
        ]
        self.pack = {"images": [self.image], "prompt": users, "completion": replies}
        self.pack |= {"shown": [[0]] * len(users), "frame": ["frame"] * len(users)}
        self.micro = work.micro_batch or 6
        trainer: Any = SFTTrainer(
            model=self.model,
            args=SFTConfig(**self._arguments(), max_length=None, remove_unused_columns=False),
            train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in self.rows]),
            data_collator=(
                FramePackCollator(self.processor, system, self.model.model.get_rope_index)
                if self.ours
                else DataCollatorForVisionLanguageModeling(self.processor, completion_only_loss=True)
            ),
            processing_class=self.processor,
            peft_config=self._lora() if work.lora else None,
        )
        self.clock.wrap(trainer, "data_collator", "preprocess")
        self.clock.wrap(trainer, "compute_loss", "log_probs")
        self.clock.wrap(trainer.accelerator, "backward", "backward")
        trainer.model.train()
        self.trainer = trainer
        self.lengths: list[int] = []
        self.labels = 0
        self.loss = 0.0

    def _run(self) -> None:
        parts = (
            [[self.pack]]
            if self.ours
            else [self.rows[i : i + self.micro] for i in range(0, len(self.rows), self.micro)]
        )
        self.loss, self.labels, self.lengths = 0.0, 0, []
        # Summed, so that micro-batches add up to one batch.
        for part in parts:
            # TRL's collator writes into the rows that it gets.
            inputs = self.trainer._prepare_inputs(self.trainer.data_collator([dict(row) for row in part]))
            self.labels += int((inputs["labels"] != tree.IGNORE).sum())
            self.lengths += inputs["attention_mask"].sum(-1).tolist()
            loss = self.trainer.compute_loss(self.trainer.model, inputs, num_items_in_batch=torch.tensor(1.0))
            self.trainer.accelerator.backward(loss)
            self.loss += float(loss.detach())

    def _compared(self, seconds: float) -> float:
        return self.clock.parts["log_probs"] + self.clock.parts["backward"]

    def output(self) -> list[Any]:
        return [self.loss / self.labels]

    def counts(self) -> dict[str, int]:
        if self.ours:
            return self._forest_counts(self.labels)
        heads = self.labels if self.clock.cuda else sum(self.lengths) - len(self.lengths)
        pairs = row_pairs(self.lengths)
        return {"tokens": sum(self.lengths), "pairs": pairs, "heads": heads, "images": len(self.lengths)}


class Predict(Job):
    """Greedy replies to all questions of a frame."""

    def __init__(self, work: Work, way: str) -> None:
        super().__init__(work, way)
        from surgery_r1.engines.local import TransformersEngine
        from surgery_r1.models.encode import Prompt

        path = Path(self.folder.name) / "frame.png"
        self.image.save(path)
        self.prompts = [Prompt((path,), prompts.user_text(text)) for text in self.texts]
        self.engine = TransformersEngine(
            self.model,
            self.processor,
            BOX_SPACE,
            batch_size=work.questions,
            max_new_tokens=work.completion_tokens,
            share_frames=self.ours,
        )
        self.clock.wrap(self.engine.encoder, "tokens", "preprocess")
        self.clock.wrap(self.model, "forward", lambda ids: "decode" if ids.shape[1] == 1 else "prefill")
        self.replies: list[str] = []

    def _run(self) -> None:
        self.replies = [text for batch in self.engine.generate(self.prompts) for text in batch]

    def output(self) -> list[Any]:
        return list(self.replies)

    def counts(self) -> dict[str, int]:
        n, new = self.work.questions, self.work.completion_tokens
        trunk = self.row_length - new - self.work.prompt_tokens
        # The last token of a reply is not fed back.
        length = self.row_length - 1
        repeats = (n - 1) if self.ours else 0
        tokens, pairs = n * length - repeats * trunk, n * row_pairs([length]) - repeats * row_pairs([trunk])
        return {"tokens": tokens, "pairs": pairs, "heads": n * new, "images": 1 if self.ours else n}


JOBS: dict[str, type[Job]] = {"sft": Sft, "rft": Rft, "predict": Predict}
