"""The transformers engine: greedy or sampled text from a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from surgery_r1.evaluate.confidence import GreedyProbabilities, Written
from surgery_r1.models.encode import Prompt, PromptEncoder
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

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[str]]:
        """Greedy replies, batch by batch, in the order of ``prompts``."""
        for batch in self.write(prompts):
            yield [written.text for written in batch]

    def write(
        self, prompts: Sequence[Prompt], *, sampled: bool = False, stop: Callable[[], bool] | None = None
    ) -> Iterator[list[Written]]:
        """Replies batch by batch, in the order of ``prompts``, with the probabilities of their tokens where greedy.

        Args:
            sampled: draw from the whole distribution (temperature 1) instead. Prompts may repeat: each is read once.
            stop: asked between tokens; where it says yes, replies end as they are.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            size = self.options.batch_size
            for start in range(0, len(prompts), size):
                yield self._batch(prompts[start : start + size], sampled, stop)
        finally:
            self.model.train(was_training)

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """As :meth:`generate`, each reply with the number of its prompt."""
        return numbered(self.generate(prompts))

    def _batch(self, batch: Sequence[Prompt], sampled: bool, stop: Callable[[], bool] | None) -> list[Written]:
        if not self.share_frames:
            return self._continue(self.encoder(batch), sampled, stop)
        tokens, images = self.encoder.tokens(batch)
        pad = self.encoder.processor.tokenizer.pad_token_id
        # Frames of different size have prefixes of different length, which cannot share one cache.
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(tokens):
            groups.setdefault(prefix_length(prompt, self.encoder.processor.image_token_id), []).append(i)
        found: dict[int, Written] = {}
        for group in groups.values():
            inputs = prefill(self.model, [tokens[i] for i in group], images, pad, share=True)
            found |= dict(zip(group, self._continue(inputs, sampled, stop), strict=True))
        return [found[i] for i in range(len(batch))]

    def _continue(self, inputs: dict[str, Any], sampled: bool, stop: Callable[[], bool] | None) -> list[Written]:
        """Replies to encoded prompts."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        tokenizer = self.encoder.processor.tokenizer
        probabilities = GreedyProbabilities()
        how: dict[str, Any] = {"do_sample": False, "logits_processor": LogitsProcessorList([probabilities])}
        if sampled:
            how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        if stop is not None:
            how["stopping_criteria"] = StoppingCriteriaList([_stopping(stop)])
        inputs = {n: value.to(self.model.device) if torch.is_tensor(value) else value for n, value in inputs.items()}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.options.max_new_tokens,
                **how,
                # Training turns the cache off in the model's configuration.
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
            )
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        if sampled:
            return [Written(text) for text in texts]
        log_probs = probabilities.rows(len(rows))
        return [Written(*parts) for parts in zip(texts, rows, log_probs, strict=True)]


def _stopping(stop: Callable[[], bool]) -> Callable[..., Any]:
    """``stop`` as transformers asks it: all rows or none."""
    import torch

    def criterion(input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), stop(), dtype=torch.bool, device=input_ids.device)

    return criterion
