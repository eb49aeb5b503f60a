"""The transformers engine: greedy or sampled text from a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgery_r1.models.encode import Prompt, PromptEncoder


class TransformersEngine:
    """Generates with ``model.generate``.

    Args:
        model, processor: of a :class:`surgery_r1.models.load.Bundle`.
        box_space: of the model.
        batch_size: prompts per batch. Neighbouring prompts of one frame share its decoding.
        max_new_tokens: upper bound of a reply.
    """

    def __init__(self, model: Any, processor: Any, box_space: str, *, batch_size: int = 16, max_new_tokens: int = 256):
        self.model = model
        self.encoder = PromptEncoder(processor, box_space)
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[str]]:
        """Greedy replies, batch by batch, in the order of ``prompts``."""
        import torch

        tokenizer = self.encoder.processor.tokenizer
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(prompts), self.batch_size):
                inputs = self.encoder(prompts[start : start + self.batch_size])
                inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
                with torch.inference_mode():
                    output = self.model.generate(
                        **inputs,
                        max_new_tokens=self.max_new_tokens,
                        do_sample=False,
                        # Training turns the cache off in the model's configuration.
                        use_cache=True,
                        eos_token_id=tokenizer.eos_token_id,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                reply = output[:, inputs["input_ids"].shape[1] :]
                yield tokenizer.batch_decode(reply, skip_special_tokens=True)
        finally:
            self.model.train(was_training)
