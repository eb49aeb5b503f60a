"""Training with shared frames is training without: the same losses, step by step, from the same rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from small import small

from surgery_r1._util.offline import stay_offline
from surgery_r1.models import from_pretrained
from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.train.datasets import frame_blocks, sft_dataset

pytestmark = pytest.mark.slow


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_an_sft_epoch(dataset, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from surgery_r1.train.sharing.sft_packing import FramePackCollator, PlainPackCollator, pack_rows

    # TRL's trainers send telemetry unless they are told not to.
    stay_offline(False)

    def run(share):
        bundle = from_pretrained("tiny", dtype="float32", device="cpu")
        tasks = ["visual_qa", "grounding_qa", "cot"]
        rows = sft_dataset(dataset, bundle.processor, bundle.info.box_space, tasks=tasks)
        packs = pack_rows(rows, per_frame=12)
        if share:
            assert tree_attention.enable(bundle.model)
        kind = FramePackCollator if share else PlainPackCollator
        system = rows[0]["prompt"][0]["content"]
        collator = kind(bundle.processor, system, bundle.model.model.get_rope_index)
        arguments = SFTConfig(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=3,
            seed=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            max_length=None,
            remove_unused_columns=False,
        )
        trainer = SFTTrainer(
            model=bundle.model,
            args=arguments,
            train_dataset=packs,
            data_collator=collator,
            processing_class=bundle.processor,
        )
        trainer.train()
        return losses(trainer)

    shared, apart = run(True), run(False)
    assert len(shared) > 5 and shared[-1] < 0.6 * shared[0]
    assert shared == pytest.approx(apart, abs=2e-3)


def test_twenty_rft_steps_on_recorded_rollouts(dataset, tmp_path, monkeypatch):
    from trl import GRPOTrainer

    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer
    from surgery_r1.train.stage import train

    recorded = []
    stock = GRPOTrainer._generate_single_turn

    def record(self, *args, **kwargs):
        recorded.append(stock(self, *args, **kwargs))
        return recorded[-1]

    def run(name, generate, **changes):
        for kind in (GRPOTrainer, SharedFrameGRPOTrainer):
            monkeypatch.setattr(kind, "_generate_single_turn", generate, raising=False)
        seen = []
        step = GRPOTrainer._compute_loss

        def compute(self, model, inputs):
            loss = step(self, model, inputs)
            seen.append(loss.item())
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(GRPOTrainer, "_compute_loss", compute)
            # Two passes over each rollout and a KL term: old and reference log-probabilities count.
            trl = {"num_iterations": 2, "beta": 0.04}
            config = small(rft_max_steps=20, rft_eval_every=20, rft_learning_rate=1e-4, rft_trl=trl, **changes)
            train("rft", config, dataset, tmp_path / name, quiet=True)
        return seen, from_pretrained(tmp_path / name, device="cpu").model.state_dict()

    # What is replayed comes from the plain way.
    apart, weights = run("apart", record, rft_share_frames=False, eval_choose="last")
    replay = iter(recorded)
    shared, ours = run("shared", lambda *_, **__: next(replay), rft_share_frames=True, eval_choose="last")
    assert len(shared) == 20 and next(replay, None) is None
    assert shared == pytest.approx(apart, abs=1e-4)
    assert max(map(abs, apart)) > 0.01
    start = from_pretrained("tiny", device="cpu").model.state_dict()
    moved = max((weights[name] - start[name]).abs().max() for name in weights)
    assert moved > 0
    assert max((weights[name] - ours[name]).abs().max() for name in weights) < 0.05 * moved


def test_questions_of_a_frame_stay_together(dataset):
    shown = [(flip, sample) for flip in ("none", "both") for sample in dataset.split("train")]
    ordered = frame_blocks(shown, 3, seed=1)
    assert sorted((flip, s.id) for flip, s in ordered) == sorted((flip, s.id) for flip, s in shown)
    assert ordered != frame_blocks(shown, 3, seed=2)
    # A frame and its mirror image are two frames.
    runs = 1 + sum((f, a.image) != (g, b.image) for (f, a), (g, b) in pairwise(ordered))
    alone = 1 + sum((f, a.image) != (g, b.image) for (f, a), (g, b) in pairwise(shown))
    assert runs < len(shown) / 1.5 and alone <= runs
