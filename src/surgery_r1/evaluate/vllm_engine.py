"""The vLLM engine: greedy text from vLLM in this process, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from surgery_r1.chat.tokens import BAN
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.models.encode import Prompt, PromptEncoder, load_image
from surgery_r1.models.load import Bundle, generation_config, is_adapter
from surgery_r1.models.processor import as_read
from surgery_r1.models.reply_tokens import banned_for

#: Prompts that vLLM is given at a time: it batches them itself, and what it has answered is written after each.
_AT_A_TIME = 256


def refuse_without_vllm() -> None:
    """Raise where vLLM is not installed.

    Raises:
        SurgeryR1Error: with what installs it, or does without.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise SurgeryR1Error(
            f"--engine vllm: vLLM cannot be imported here ({error})",
            fix="pip install vllm on a machine with a GPU, or `vllm serve` it in an environment of its own and predict "
            "with --endpoint",
        ) from None


class VllmEngine:
    """Gives vLLM the tokens of our own prompts, with every image as one token that vLLM expands.

    Args:
        bundle: of a whole model folder, without the model.
        options: length of replies; the batch size is vLLM's own affair.
        dtype: of the weights; ``auto`` takes them as saved.

    Raises:
        SurgeryR1Error: for an adapter.
    """

    name = "vllm"

    def __init__(self, bundle: Bundle, options: GenerationOptions, dtype: str) -> None:
        if is_adapter(bundle.folder):
            raise SurgeryR1Error(
                "holds an adapter, which --engine vllm does not merge",
                where=bundle.folder,
                fix="merge it first: surgery-r1 export RUN OUT, then --model OUT",
            )
        self.encoder = PromptEncoder(bundle.processor, bundle.info.box_space)
        self._folder, self._options, self._dtype = bundle.folder, options, dtype
        self._bias = dict.fromkeys(banned_for(bundle), BAN) or None
        ends = generation_config(bundle.folder, bundle.tokenizer).eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Greedy replies, each with the number of its prompt.

        Raises:
            SurgeryR1Error: when vLLM cannot load the model, or reads a prompt in another way than we do.
        """
        if not prompts:
            return
        import vllm

        longest = max(map(self.encoder.token_count, prompts)) + self._options.max_new_tokens
        engine = self._start(vllm, longest, max(len(prompt.images) for prompt in prompts))
        greedy = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=self._options.max_new_tokens,
            stop_token_ids=self._ends,
            logit_bias=self._bias,
            detokenize=False,
        )
        for start in range(0, len(prompts), _AT_A_TIME):
            batch = prompts[start : start + _AT_A_TIME]
            done = engine.generate([self._request(prompt) for prompt in batch], greedy, use_tqdm=False)
            yield [
                (start + i, self._text(prompt, output))
                for i, (prompt, output) in enumerate(zip(batch, done, strict=True))
            ]

    def _start(self, vllm: Any, longest: int, images: int) -> Any:
        # vLLM raises errors of many types, of its own processes too.
        try:
            return vllm.LLM(
                model=str(self._folder),
                dtype=self._dtype,
                max_model_len=longest,
                limit_mm_per_prompt={"image": images},
                # Nothing but what is asked for here: no penalties of a published folder.
                generation_config="vllm",
            )
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            raise SurgeryR1Error(
                f"vLLM cannot load it ({type(error).__name__}: {first})",
                where=self._folder,
                fix="see what it says above",
            ) from error

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        images = [as_read(load_image(image), self.encoder.processor) for image in prompt.images]
        return {"prompt_token_ids": self.encoder.unexpanded(prompt), "multi_modal_data": {"image": images}}

    def _text(self, prompt: Prompt, output: Any) -> str:
        here, there = self.encoder.token_count(prompt), len(output.prompt_token_ids)
        if here != there:
            raise SurgeryR1Error(
                f"vLLM reads {there} tokens in a prompt that has {here} here",
                where=str(prompt.images[0]) if isinstance(prompt.images[0], Path) else None,
                fix="see preprocessor_config.json of the model's folder: its pixel limits must be those of training",
            )
        text: str = self.encoder.processor.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)
        return text
