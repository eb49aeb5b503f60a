"""Templates, tokens that end or spoil a reply, and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch

from surgery_r1 import codec, prompts
from surgery_r1._util.overriding import overriding
from surgery_r1.doctor.check import Found, Wrong, check
from surgery_r1.doctor.patient import Patient
from surgery_r1.evaluate.endpoint import find_served, open_client
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.predict import prompt_of
from surgery_r1.models.encode import PromptEncoder
from surgery_r1.models.processor import view_of
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.models.sharing.attention import core
from surgery_r1.train.datasets import prompt_and_completion

_CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
#: Added to logits by the check of what a policy may sample: more than any model gives.
_PUSH = 1e4
#: Rows whose text has most characters, of which tokens are counted.
_LONG_ROWS = 300


def ends_of(patient: Patient) -> set[int]:
    """Token ids that end a reply."""
    ends = patient.loaded.model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


@check(
    "chat_template",
    proves="A prompt is the beginning of its training row, a frame is one place in it, a reply ends with a token that "
    "ends generation, and its tags survive decoding.",
    fix="restore chat_template.jinja, tokenizer.json and tokenizer_config.json of the model's own folder",
    needs=("model",),
)
def chat_template(patient: Patient) -> Found:
    processor, tokenizer = patient.loaded.processor, patient.loaded.tokenizer
    lacking = [name for name in _CONTROL if tokenizer.convert_tokens_to_ids(name) in (None, tokenizer.unk_token_id)]
    if lacking:
        raise Wrong(f"the tokenizer does not know {', '.join(lacking)}")
    ours, theirs = processor.image_token_id, core(patient.loaded.model).config.image_token_id
    if ours != theirs:
        raise Wrong(f"<|image_pad|> is {ours} for the tokenizer, {theirs} for the model")
    reply = codec.render("it is seen top left", "left-top", (1, 2, 3, 4))
    messages = prompts.messages(prompts.user_text("Where is suction located?"), patient.loaded.info.box_space)
    row = [*messages, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]
    asked = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = processor.apply_chat_template(row, tokenize=False)
    if not whole.startswith(asked + reply):
        raise Wrong("a training row does not begin with the prompt that is asked later")
    if asked.count(processor.image_token) != 1:
        raise Wrong(f"a prompt with one frame has {asked.count(processor.image_token)} places for it")
    first, long = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, asked + reply))
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if ids[: len(first)] != first:
        raise Wrong("the tokens of a training row do not begin with those of its prompt")
    if ids[len(long) : len(long) + 1] == [] or ids[len(long)] not in ends_of(patient):
        raise Wrong(
            "a reply in a training row is not followed by a token that ends generation: the model never learns to stop"
        )
    read = tokenizer.decode(long[len(first) :], skip_special_tokens=True)
    if read != reply:
        raise Wrong(f"a reply is read back as {read!r:.120}", "let <think>, <answer> and <box> be no special tokens")
    return Found("prompt, row and end of a reply fit", {"ends": sorted(ends_of(patient))})


@check(
    "reply_tokens",
    proves="No reply can hold a token that stands for a frame, or padding, however likely the model finds it.",
    fix="report this: rollouts and predictions must suppress these tokens",
    needs=("model", "image_tokens", "options"),
)
def reply_tokens(patient: Patient) -> Found:
    bundle = patient.loaded
    banned = set(banned_tokens(bundle.tokenizer, ends_of(patient))) | {core(bundle.model).config.image_token_id}
    wanted = torch.tensor(sorted(banned), device=bundle.model.device)

    def push(_: Any, __: Any, output: Any) -> Any:
        output.logits[..., wanted] += _PUSH
        return output

    prompt = prompt_of(patient.samples(1)[0], patient.dataset)
    engine = TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, GenerationOptions(1, 3))
    seen: list[int] = []

    def generate(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        seen.extend(found[0, kwargs["input_ids"].shape[1] :].tolist())
        return found

    plain = bundle.model.generate
    handle = bundle.model.register_forward_hook(push)
    try:
        with overriding(bundle.model, "generate", generate):
            list(engine.generate([prompt]))
    finally:
        handle.remove()
    # Rows of a batch that have ended are filled up with padding, which is no sampled token: here is one row.
    if held := sorted(banned & set(seen)):
        names = bundle.tokenizer.convert_ids_to_tokens(held)
        raise Wrong(f"a reply can hold {', '.join(names)}")
    if missing := sorted(banned - patient.rollouts.suppressed):
        raise Wrong(f"RFT does not leave out {', '.join(bundle.tokenizer.convert_ids_to_tokens(missing))}")
    return Found(f"{len(banned)} tokens are banned", {"banned": sorted(banned)})


def _targets(patient: Patient) -> Iterator[tuple[int, int, bool]]:
    """Tokens of prompt and reply of the rows with most text, and whether a rationale is part of the reply."""
    dataset, bundle = patient.dataset, patient.loaded
    rows = sorted(dataset.train_rows(), key=lambda row: len(row.question) + len(row.reasoning or ""), reverse=True)
    encoder = PromptEncoder(bundle.processor, bundle.info.box_space)
    for row in rows[:_LONG_ROWS]:
        sample = dataset.samples[row.sample_id]
        view = view_of(bundle.processor, sample.width, sample.height)
        _, completion = prompt_and_completion(
            row.task, row.question, row.reasoning, row.answer, row.box_px, bundle.info.box_space, view
        )
        text = completion[0]["content"]
        reply = len(bundle.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        yield encoder.token_count(prompt_of(sample, dataset)), reply, row.reasoning is not None


@check(
    "longest",
    proves="The longest training reply fits what RFT and dev may write, and the longest row fits trainer, model and "
    "server.",
    fix="raise the limit that is named",
    needs=("model", "image_tokens"),
)
def longest(patient: Patient) -> Found:
    config, found = patient.config, list(_targets(patient))
    if not found:
        raise Wrong("no training rows", "build the dataset from training sequences")
    prompt, row = max(p for p, _, _ in found), max(p + r for p, r, _ in found)
    replies = {form: max((r for _, r, with_it in found if with_it == form), default=0) for form in (True, False)}
    for name, limit, form in (
        ("rft.max_completion", config.rft.max_completion, config.rft.reasoning),
        ("eval.max_new_tokens", config.eval.max_new_tokens, config.eval.reasoning),
    ):
        if replies[form] > limit:
            raise Wrong(
                f"{name} is {limit}, a reply in the training rows has {replies[form]} tokens",
                f"set {name} to {replies[form]} or more",
            )
    whole = max(row, prompt + config.rft.max_completion, prompt + config.eval.max_new_tokens)
    places = {
        "sft.trl.max_length": (config.sft.trl.get("max_length"), row),
        "the model's max_position_embeddings": (
            getattr(core(patient.loaded.model).config.get_text_config(), "max_position_embeddings", None),
            whole,
        ),
        "the server's max_model_len": (_server_length(patient), whole),
    }
    for name, (room, needed) in places.items():
        if room is not None and needed > room:
            raise Wrong(f"{name} is {room}, a row has {needed} tokens: it would be cut, image tokens and all")
    reply = max(replies.values())
    figures = {"prompt": prompt, "reply": reply, "row": row}
    return Found(f"prompt {prompt}, reply {reply}, row {row} tokens", figures)


def _server_length(patient: Patient) -> int | None:
    if patient.server is None:
        return None
    client, local = open_client(patient.server, 1)
    with closing(client):
        listed = {entry["id"]: entry for entry in client.models() or []}
        served = find_served(client, patient.base, patient.server.served_model, local, allow_hub=patient.allowed.hub)
        length = listed.get(served.name, {}).get("max_model_len")
    return length if isinstance(length, int) else None
