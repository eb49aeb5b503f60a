"""Updates of both stages, by stock TRL (baseline) and with shared frames (optimised), on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from surgery_r1 import prompts
from surgery_r1.bench import shapes
from surgery_r1.bench.job import BOX_SPACE, Benchmark
from surgery_r1.bench.operations import row_pairs, tree_pairs
from surgery_r1.bench.shapes import Work
from surgery_r1.models.sharing import prefix_tree
from surgery_r1.train.datasets import prompt_messages


class _TrainingBenchmark(Benchmark):
    """An update of one stage; what is compared is forward, loss and backward."""

    def _arguments(self) -> dict[str, Any]:
        """Options that TRL's two config classes share."""
        return {
            "output_dir": self.folder.name,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "use_cpu": not self.clock.cuda,
            "bf16": self.work.dtype == "bfloat16",
            "max_steps": 1_000_000,
            "logging_steps": 1_000_000,
            "gradient_checkpointing": self.work.checkpointing,
        }

    def _trainer(self, kind: Any, preprocess: str, **options: Any) -> Any:
        """A trainer of the model; the time of its method ``preprocess`` and of its update is taken."""
        from peft import LoraConfig

        names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=rf".*language_model.*\.({names})")
        peft = lora if self.work.lora else None
        trainer = kind(model=self.model, processing_class=self.processor, peft_config=peft, **options)
        self.clock.wrap(trainer, preprocess, "preprocess")
        self.clock.wrap(trainer, "compute_loss", "log_probs")
        self.clock.wrap(trainer.accelerator, "backward", "backward")
        trainer.model.train()
        return trainer

    def _compared(self, seconds: dict[str, float]) -> float:
        return seconds["log_probs"] + seconds["backward"]

    def _counts(self, lengths: list[int], labels: int) -> dict[str, int]:
        """Counts of trees, or of the baseline's rows of these lengths."""
        if self.optimised:
            tokens = sum(layout.size for layout in self.layouts)
            pairs, heads, images = sum(map(tree_pairs, self.layouts)), tokens, self.work.frames
        else:
            tokens, pairs, images = sum(lengths), row_pairs(lengths), len(lengths)
            heads = tokens - images
        # Without a GPU TRL projects every position, with one those that have a label.
        return {"tokens": tokens, "pairs": pairs, "heads": labels if self.clock.cuda else heads, "images": images}


class RftBenchmark(_TrainingBenchmark):
    """A GRPO step on replayed rollouts; what is compared is the update (log-probabilities, loss, backward).

    Args:
        micro: completions in a pass; 0: the usual number of the variant.
    """

    def __init__(self, work: Work, variant: str, micro: int = 0) -> None:
        super().__init__(work, variant)
        from datasets import Dataset
        from trl import GRPOConfig

        # TRL's own, but for its random numbers: both variants sample the same replies.
        from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer, WholeModelGRPOTrainer

        rows = work.asked * work.generations
        self.micro = micro or (rows if self.optimised else (work.micro_batch or work.generations))
        arguments = GRPOConfig(
            **self._arguments(),
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=rows // self.micro,
            num_generations=work.generations,
            max_completion_length=work.completion_tokens,
            beta=0.0,
            **self._options(),
        )
        asked = [prompt_messages(text, BOX_SPACE, "cot", True) for text in self.texts]
        self.batch = [
            {"prompt": prompt, "images": [image], **self._columns()}
            for image in self.images
            for prompt in asked
            for _ in range(work.generations)
        ]
        self.replies = shapes.completions(work, rows, seed=1)
        self.seen: dict[tuple[int, ...], list[float]] = {}
        self.trainer = trainer = self._trainer(
            SharedFrameGRPOTrainer if self.optimised else WholeModelGRPOTrainer,
            "_generate_and_score_completions",
            args=arguments,
            reward_funcs=self._rewards(),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in asked]),
        )
        trainer.current_gradient_accumulation_steps = rows // self.micro
        self._prepare(trainer)

    def _options(self) -> dict[str, Any]:
        """Options of TRL's config beside those of every benchmark."""
        return {}

    def _columns(self) -> dict[str, Any]:
        """Columns of a row beside prompt and image."""
        return {}

    def _rewards(self) -> list[Callable[..., list[float | None]]]:
        def reward(completions: list[Any], **_: Any) -> list[float | None]:
            # Gold replies of which every other is spoiled: rewards vary within a group.
            return [float(i % 2) for i in range(len(completions))]

        return [reward]

    def _prepare(self, trainer: Any) -> None:
        """Let the trainer take the same completions in every run."""
        trainer._generate_single_turn = lambda *_, **__: (self.replies, None)
        self._note(trainer)

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

    def output(self) -> list[Any]:
        return [value for reply in self.replies for value in self.seen[tuple(reply)]]

    def counts(self) -> dict[str, int]:
        count = len(self.replies)
        return self._counts([self.row_length] * count, labels=count * self.work.completion_tokens)


class SftBenchmark(_TrainingBenchmark):
    """A step of SFT on all rows of a frame; what is compared is the update (forward, loss, backward)."""

    def __init__(self, work: Work, variant: str) -> None:
        super().__init__(work, variant)
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        from surgery_r1.train.sharing.sft_packing import FramePackCollator

        tokenizer = self.processor.tokenizer
        # The reply is followed by the end of its turn, two tokens.
        per_frame = work.questions * work.rows
        texts = shapes.completions(work, work.asked * work.rows, seed=1)
        replies = [tokenizer.decode(ids[:-2]) for ids in texts]
        # Rows of a question part where the reply is asked for, as those of a dataset do.
        kinds = [(task, reasoning) for reasoning in (True, False) for task in ("visual_qa", "grounding_qa", "cot")]
        asked = [
            prompt_messages(text, BOX_SPACE, *kinds[number % len(kinds)])
            for text in self.texts
            for number in range(work.rows)
        ] * work.frames
        self.rows = [
            {
                "prompt": prompt,
                "completion": [{"role": "assistant", "content": reply}],
                "images": [self.images[number // per_frame]],
            }
            for number, (prompt, reply) in enumerate(zip(asked, replies, strict=True))
        ]
        users = [user["content"] for _, user in asked[:per_frame]]
        self.packs = [
            {
                "images": [image],
                "prompt": users,
                "completion": replies[number * per_frame : (number + 1) * per_frame],
                "shown": [[0]] * per_frame,
                "frame": [f"frame {number}"] * per_frame,
            }
            for number, image in enumerate(self.images)
        ]
        self.micro = work.micro_batch or 6
        system = prompts.system_text(BOX_SPACE)
        self.trainer = self._trainer(
            SFTTrainer,
            "data_collator",
            args=SFTConfig(**self._arguments(), max_length=None, remove_unused_columns=False),
            train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in self.rows]),
            data_collator=(
                FramePackCollator(self.processor, system, self.model.model.get_rope_index)
                if self.optimised
                else DataCollatorForVisionLanguageModeling(self.processor, completion_only_loss=True)
            ),
        )
        self.lengths: list[int] = []
        self.labels = 0
        self.loss = 0.0

    def _run(self) -> None:
        parts = (
            [self.packs]
            if self.optimised
            else [self.rows[i : i + self.micro] for i in range(0, len(self.rows), self.micro)]
        )
        self.loss, self.labels, self.lengths = 0.0, 0, []
        # Summed, so that micro-batches add up to one batch.
        for part in parts:
            # TRL's collator writes into the rows that it gets.
            inputs = self.trainer._prepare_inputs(self.trainer.data_collator([dict(row) for row in part]))
            self.labels += int((inputs["labels"] != prefix_tree.IGNORE).sum())
            self.lengths += inputs["attention_mask"].sum(-1).tolist()
            loss = self.trainer.compute_loss(self.trainer.model, inputs, num_items_in_batch=torch.tensor(1.0))
            self.trainer.accelerator.backward(loss)
            self.loss += float(loss.detach())

    def output(self) -> list[Any]:
        return [self.loss / self.labels]

    def counts(self) -> dict[str, int]:
        return self._counts(self.lengths, self.labels)
