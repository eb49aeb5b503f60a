"""The transformers engine: greedy or sampled text from a model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from surgery_r1.models.encode import Prompt, PromptEncoder
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.models.sharing.attention import can_share, core, enable
from surgery_r1.models.sharing.prefill import prefill, prefix_length


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How replies are generated.

    Attributes:
        batch_size: prompts per batch. Neighbouring prompts of one frame share its prefill.
        max_new_tokens: upper bound of a reply, in tokens.
        reasoning: ask for a rationale before answer and box.
    """

    batch_size: int = 16
    max_new_tokens: int = 256
    reasoning: bool = True


def numbered(batches: Iterable[list[str]]) -> Iterator[list[tuple[int, str]]]:
    """Texts that come in the order of their prompts, each with the number of its prompt.

    >>> list(numbered([["a", "b"], ["c"]]))
    [[(0, 'a'), (1, 'b')], [(2, 'c')]]
    """
    count = 0
    for texts in batches:
        yield list(enumerate(texts, start=count))
        count += len(texts)


class TransformersEngine:
    """Generates with ``model.generate``.

    Args:
        model, processor: of a :class:`surgery_r1.models.load.Bundle`.
        box_space: of the model.
        options: batch size and length of replies.
        share_frames: read each frame of a batch once, where the model's layers allow it.
    """

    name = "transformers"

    def __init__(
        self,
        model: Any,
        processor: Any,
        box_space: str,
        options: GenerationOptions | None = None,
        *,
        share_frames: bool = True,
    ):
        self.model = model
        self.share_frames = share_frames and can_share(model)
        # The same attention, which also takes what rows share once. Another implementation was asked for by name.
        if self.share_frames and core(model).config.get_text_config()._attn_implementation == "sdpa":
            enable(model)
        self.encoder = PromptEncoder(processor, box_space)
        self.options = options or GenerationOptions()
        #: For ``generate``, to which an empty list is an error.
        self._banned = list(banned_tokens(processor.tokenizer, model.generation_config.eos_token_id)) or None

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[str]]:
        """Greedy replies, batch by batch, in the order of ``prompts``."""
        was_training = self.model.training
        self.model.eval()
        try:
            size = self.options.batch_size
            for start in range(0, len(prompts), size):
                yield self._batch(prompts[start : start + size])
        finally:
            self.model.train(was_training)

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """As :meth:`generate`, each reply with the number of its prompt."""
        return numbered(self.generate(prompts))

    def _batch(self, batch: Sequence[Prompt]) -> list[str]:
        if not self.share_frames:
            return self._continue(self.encoder(batch))
        tokens, images = self.encoder.tokens(batch)
        pad = self.encoder.processor.tokenizer.pad_token_id
        # Frames of different size have prefixes of different length, which cannot share one cache.
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(tokens):
            groups.setdefault(prefix_length(prompt, self.encoder.processor.image_token_id), []).append(i)
        texts = [""] * len(batch)
        for group in groups.values():
            inputs = prefill(self.model, [tokens[i] for i in group], images, pad, share=True)
            for i, text in zip(group, self._continue(inputs), strict=True):
                texts[i] = text
        return texts

    def _continue(self, inputs: dict[str, Any]) -> list[str]:
        """Replies to encoded prompts."""
        import torch

        tokenizer = self.encoder.processor.tokenizer
        inputs = {n: value.to(self.model.device) if torch.is_tensor(value) else value for n, value in inputs.items()}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.options.max_new_tokens,
                do_sample=False,
                # Training turns the cache off in the model's configuration.
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                suppress_tokens=self._banned,
            )
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
