"""Models and texts that a benchmark runs on: the Qwen2.5-VL class from a config, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from surgery_r1._util.toml import load_toml
from surgery_r1.errors import SurgeryR1Error

#: Sizes of models by name, see ``shapes.toml``.
SHAPES: dict[str, dict[str, dict[str, Any]]] = load_toml(Path(__file__).with_name("shapes.toml"))[0]


@dataclass(frozen=True)
class Work:
    """What is computed. The vision tower is frozen always.

    Attributes:
        shape: Size of the model, whose weights are random.
        image_tokens: Tokens of the frame; rounded to a grid of about 5:4.
        prompt_tokens: Text tokens of a prompt, system text and chat marks included.
        completion_tokens: Tokens of a completion; 0: 128 for rft, 60 for sft, 32 for predict.
        questions: Questions on a frame; 0: 1 for rft, 6 for sft and predict.
        frames: Frames, each with as many questions.
        generations: Completions of a question (rft).
        rows: Training rows of a question (sft).
        micro_batch: Rows in a pass of the baseline; 0: one group (rft) or 6 rows (sft).
        dtype: Of weights and activations.
        device: cpu or cuda.
        lora: Train an adapter of rank 16 instead of the language model.
        checkpointing: Recompute activations in the backward pass.
        threads: Threads of each process; 0: as many as torch takes.
        whole: Of rft: time a whole step (generation, rewards, update, optimiser), not the update alone.
    """

    shape: Literal["tiny", "cpu", "3b", "7b"] = "cpu"
    image_tokens: int = 1280
    prompt_tokens: int = 150
    completion_tokens: int = 0
    questions: int = 0
    frames: int = 1
    generations: int = 8
    rows: int = 3
    micro_batch: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    lora: bool = False
    checkpointing: bool = False
    threads: int = 0
    whole: bool = False

    def of(self, name: str) -> Work:
        """The same with the usual numbers of the benchmark ``name`` where there are zeros.

        >>> Work().of("rft").completion_tokens, Work(questions=2).of("sft").questions
        (128, 2)
        """
        tokens = self.completion_tokens or {"rft": 128, "sft": 60, "predict": 32}[name]
        return replace(self, completion_tokens=tokens, questions=self.questions or (1 if name == "rft" else 6))

    @property
    def asked(self) -> int:
        """Questions on all frames."""
        return self.frames * self.questions

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of image tokens.

        >>> Work().grid, Work(image_tokens=30).grid
        ((40, 32), (6, 5))
        """
        rows = max(1, round((self.image_tokens / 1.25) ** 0.5))
        return max(1, round(self.image_tokens / rows)), rows

    def check(self) -> None:
        """Raises SurgeryR1Error for what cannot be run."""
        if self.shape not in SHAPES:
            raise SurgeryR1Error(f"unknown shape {self.shape!r}", fix=f"use one of {', '.join(SHAPES)}")
        for name in ("image_tokens", "completion_tokens", "questions", "frames", "generations", "rows"):
            if getattr(self, name) < 1:
                raise SurgeryR1Error(f"{name} = {getattr(self, name)}", fix="give 1 or more")
        if self.prompt_tokens < 80:
            raise SurgeryR1Error(
                f"prompt_tokens = {self.prompt_tokens}", fix="give 80 or more: system text and chat marks take some 70"
            )
        completions, micro = self.asked * self.generations, self.micro_batch
        if micro and (completions % micro or micro % self.generations):
            raise SurgeryR1Error(
                f"micro_batch = {micro} cannot hold whole groups",
                fix=f"give a multiple of {self.generations} that divides {completions}",
            )


def random_model(work: Work, tokenizer: Any) -> Any:
    """The model of ``work.shape`` with random weights, on its device. In every precision they are the same numbers."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from surgery_r1.models.tiny import architecture as tiny

    config = tiny.build_config(tokenizer)
    text, vision = (dict(SHAPES[work.shape][part]) for part in ("text", "vision"))
    sections, full = text.pop("sections"), vision.pop("full")
    config.text_config.update(text)
    config.vision_config.update(vision)
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config.text_config.max_position_embeddings = 32768
    config.text_config.layer_types = ["full_attention"] * text["num_hidden_layers"]
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = work.shape != "7b"
    config.vision_config.out_hidden_size = text["hidden_size"]
    config.vision_config.window_size = 112
    config.vision_config.fullatt_block_indexes = full
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(work.device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(
                config, attn_implementation="sdpa", dtype=torch.bfloat16
            )
    finally:
        torch.set_default_dtype(before)
    model.to(getattr(torch, work.dtype))
    model.model.visual.requires_grad_(False)
    return model


def build_processor(work: Work, *, deduplicate: bool) -> Any:
    """A processor whose frames have ``work.image_tokens`` tokens.

    Args:
        deduplicate: resize a repeated frame once, where the stock one does so every time.
    """
    from surgery_r1.models.processor import DeduplicatingImageProcessor, ImageOnlyQwen25VLProcessor
    from surgery_r1.models.tiny import architecture as tiny
    from surgery_r1.models.tiny import text as tiny_text

    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    # Long prompts are wanted here.
    tokenizer.model_max_length = 1 << 20
    image = tiny.build_image_processor()
    if deduplicate:
        image = DeduplicatingImageProcessor(patch_size=image.patch_size, merge_size=image.merge_size)
    pixels = work.grid[0] * work.grid[1] * 28 * 28
    image.size = {"shortest_edge": pixels, "longest_edge": pixels}
    return ImageOnlyQwen25VLProcessor(image, tokenizer, chat_template=tiny.CHAT_TEMPLATE)


def frame(work: Work, seed: int = 0) -> Any:
    """A picture of smooth random colours, of the size that needs no resizing."""
    import numpy as np
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((work.grid[0] * 28, work.grid[1] * 28), Image.Resampling.BICUBIC)


def questions(work: Work, processor: Any) -> list[str]:
    """Questions that part early. The prompt that asks for reasoning, answer and box is ``prompt_tokens`` long."""
    from surgery_r1 import prompts

    messages = prompts.messages(prompts.user_text("?"), "norm100")
    bare = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokenizer = processor.tokenizer
    # One placeholder stands for the image.
    left = work.prompt_tokens - (len(tokenizer(bare, add_special_tokens=False)["input_ids"]) - 1)
    words = [" tool", " tissue", " kidney", " left", " right", " shaft", " jaws", " tip", " frame"]
    result = []
    for number in range(work.questions):
        text = (words[number % len(words)] * (1 + number // len(words))).strip()
        text += " the" * max(0, left - len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        result.append(text + "?")
    return result


def completions(work: Work, count: int, seed: int) -> list[list[int]]:
    """Random token ids of ordinary words, ``count`` x ``completion_tokens``, without an end."""
    import numpy as np

    return np.random.default_rng(seed).integers(400, 900, (count, work.completion_tokens)).tolist()
