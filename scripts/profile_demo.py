"""Where the demo's CPU seconds go: a few steps of SFT and RFT and a prediction, on the tiny model, by part.

    python scripts/profile_demo.py --data demo/dataset --model demo/sft --out docs/profile.json

Seconds are CPU seconds of the process, user and system, of all its threads; each is counted for the innermost part
that is running. Parts of transformers, TRL and this package are wrapped where they are called.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

STEPS = {"sft": 24, "rft": 8}

#: Part, and what it is.
PARTS = {
    "images": "frames: decoding, resizing, hashing, patches",
    "tokens": "chat template and tokenizer",
    "collation": "packs and prefix trees to tensors, positions",
    "vision": "vision tower, and the look-up of kept features",
    "prefill": "frames and questions read into the cache",
    "decode: layers": "decoding: layers without attention and cache",
    "decode: attention": "decoding: attention",
    "decode: cache": "decoding: keys and values written to the cache",
    "decode: masks": "decoding: attention masks and positions",
    "decode: head": "decoding: the rest of the forward (embedding, output projection, bookkeeping)",
    "generate": "choosing tokens: processors, sampling, stopping; generate's own loop",
    "forward": "forward of an update, without the tower",
    "loss": "loss, log-probabilities, advantages",
    "backward": "backward",
    "optimiser": "gradient norm and optimiser",
    "rewards": "rewards",
    "dev": "evaluation on dev beside generation: reading and matching replies",
    "files": "checkpoints, metrics and prediction lines",
    "rest": "all else",
}


class Profile:
    """CPU seconds by innermost part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._stack = ["rest"]
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        part = self._stack[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    @property
    def decoding(self) -> bool:
        return self._stack[-1].startswith("decode")

    def wrap(self, owner: Any, name: str, part: str | Callable[..., str | None]) -> None:
        """Count calls of ``owner.name`` as ``part``, or as what ``part`` makes of the arguments (None: not at all)."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            key = part if isinstance(part, str) else part(*args, **kwargs)
            if key is None:
                return inner(*args, **kwargs)
            with self.part(key):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def start(self) -> None:
        self.seconds.clear()
        self.calls.clear()
        self._since = time.process_time()

    def stop(self) -> dict[str, float]:
        self._switch()
        return {part: round(self.seconds[part], 3) for part in PARTS if part in self.seconds}


def instrument(profile: Profile) -> None:
    """Wrap what the parts are made of."""
    import torch
    from transformers import AttentionInterface, GenerationMixin, PreTrainedTokenizerBase, ProcessorMixin
    from transformers.cache_utils import Cache
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling
    from trl import GRPOTrainer, SFTTrainer

    from surgery_r1._util import files
    from surgery_r1.evaluate import predict
    from surgery_r1.models import encode, processor
    from surgery_r1.models.sharing import attention, vision_features
    from surgery_r1.train import dev
    from surgery_r1.train.sharing import grpo, image_ids, sft_packing

    decoding = lambda part: lambda *_, **__: part if profile.decoding else None  # noqa: E731

    def forward(_: Any, *__: Any, **given: Any) -> str:
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        if torch.is_grad_enabled():
            return "forward"
        return "decode: head" if cache is not None and ids.shape[1] == 1 else "prefill"

    profile.wrap(modeling.Qwen2_5_VLForConditionalGeneration, "forward", forward)
    # TRL's trainers replace the outer forward.
    profile.wrap(modeling.Qwen2_5_VLModel, "forward", lambda *_, **__: "forward" if torch.is_grad_enabled() else None)
    profile.wrap(modeling.Qwen2_5_VLTextModel, "forward", decoding("decode: layers"))
    profile.wrap(modeling, "create_causal_mask", decoding("decode: masks"))
    profile.wrap(modeling.Qwen2_5_VLModel, "compute_3d_position_ids", decoding("decode: masks"))
    profile.wrap(Cache, "update", decoding("decode: cache"))
    profile.wrap(attention, "sdpa_attention_forward", decoding("decode: attention"))
    profile.wrap(attention, "_shared_attention", decoding("decode: attention"))
    AttentionInterface.register("sdpa", attention.sdpa_attention_forward)
    profile.wrap(modeling.Qwen2_5_VisionTransformerPretrainedModel, "forward", "vision")
    profile.wrap(vision_features.VisionCache, "__call__", "vision")
    profile.wrap(GenerationMixin, "generate", "generate")
    profile.wrap(encode, "load_image", "images")
    profile.wrap(processor.DeduplicatingImageProcessor, "__call__", "images")
    profile.wrap(image_ids.ImageIds, "__call__", "images")
    profile.wrap(PreTrainedTokenizerBase, "__call__", "tokens")
    profile.wrap(PreTrainedTokenizerBase, "batch_decode", "tokens")
    profile.wrap(ProcessorMixin, "apply_chat_template", "tokens")
    profile.wrap(sft_packing.FramePackCollator, "__call__", "collation")
    profile.wrap(grpo.prefix_tree, "build_prefix_tree", "collation")
    profile.wrap(grpo.prefix_tree.SequencePositions, "__call__", "collation")
    profile.wrap(torch.Tensor, "backward", "backward")
    profile.wrap(torch.optim.AdamW, "step", "optimiser")
    profile.wrap(torch.nn.utils, "clip_grad_norm_", "optimiser")
    profile.wrap(GRPOTrainer, "_calculate_rewards", "rewards")
    profile.wrap(GRPOTrainer, "_compute_loss", "loss")
    profile.wrap(SFTTrainer, "compute_loss", "loss")
    profile.wrap(dev, "read_reply", "dev")
    profile.wrap(dev.Scorer, "line", "dev")
    profile.wrap(predict, "dump_json", "files")
    profile.wrap(predict, "write_jsonl", "files")
    profile.wrap(files, "write_json", "files")


def configured(stage: str) -> Any:
    """The demo's config for a few steps."""
    from surgery_r1.train.config import load_config

    config = load_config("tiny")
    steps = STEPS[stage]
    table = replace(getattr(config, stage), max_steps=steps, eval_every=steps)
    return replace(config, **{stage: table}, eval=replace(config.eval, dev_samples=1, choose="last"))


def profiled(what: str, profile: Profile, data: Path, model: Path, questions: int, folder: Path) -> dict[str, Any]:
    """One stage, or the prediction: CPU seconds by part, and of how much."""
    from surgery_r1.data.dataset import open_dataset
    from surgery_r1.evaluate.generation import GenerationOptions
    from surgery_r1.evaluate.run import predict_with_model
    from surgery_r1.train import fit, stage

    dataset = open_dataset(data)
    seconds: dict[str, float] = {}
    # Start-up is not what is asked about: loading, the dataset's rows, the first look at dev.
    if what == "predict":
        from surgery_r1.evaluate import run

        inner_predict = run.predict

        def predicted(*args: Any, **kwargs: Any) -> int:
            profile.start()
            count = inner_predict(*args, **kwargs)
            seconds.update(profile.stop())
            return count

        run.predict = predicted
        options = GenerationOptions(configured("sft").eval.batch_size, configured("sft").eval.max_new_tokens)
        count = predict_with_model(model, dataset, "val", folder / "p.jsonl", options, limit=questions)
        run.predict = inner_predict
        return {"of": f"{count} questions", "count": count, "cpu_s": seconds}
    inner_run = fit.run_trainer

    def run_trainer(trainer: Any, *args: Any) -> int:
        profile.start()
        steps = inner_run(trainer, *args)
        seconds.update(profile.stop())
        return steps

    fit.run_trainer = run_trainer
    base = {"base": model} if what == "rft" else {}
    result = stage.train(what, configured(what), dataset, folder / what, quiet=True, **base)  # type: ignore[arg-type]
    fit.run_trainer = inner_run
    return {"of": f"{result.steps} steps", "count": result.steps, "cpu_s": seconds}


def table(records: dict[str, dict[str, Any]]) -> str:
    """The table of ``docs/speed.md``: milliseconds of CPU a step or question, and shares."""
    units = {"sft": "a step", "rft": "a step", "predict": "a question"}
    lines = ["| part | " + " | ".join(f"{name}, ms {units[name]}" for name in records) + " |"]
    lines.append("|---|" + "---:|" * len(records))
    totals = {name: sum(record["cpu_s"].values()) for name, record in records.items()}
    for part, meaning in PARTS.items():
        cells = []
        for name, record in records.items():
            value = record["cpu_s"].get(part, 0.0)
            ms, share = 1000 * value / record["count"], value / totals[name]
            cells.append(f"{ms:.4g} ({share:.0%})" if share >= 0.001 else "-")
        if set(cells) != {"-"}:
            lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    last = (f"**{1000 * totals[name] / record['count']:.4g}**" for name, record in records.items())
    return "\n".join([*lines, "| all | " + " | ".join(last) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="where RFT starts, and what predicts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--only", choices=["sft", "rft", "predict"])
    args = parser.parse_args()
    import torch
    import transformers
    import trl

    profile = Profile()
    instrument(profile)
    with tempfile.TemporaryDirectory() as folder:
        records = {
            what: profiled(what, profile, args.data, args.model, args.questions, Path(folder))
            for what in ("sft", "rft", "predict")
            if args.only in (None, what)
        }
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    args.out.write_text(json.dumps({"machine": machine, "versions": versions, **records}, indent=1) + "\n")
    sys.stdout.write(table(records) + "\n")


if __name__ == "__main__":
    main()
