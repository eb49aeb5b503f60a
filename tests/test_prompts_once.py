"""Equal prompts of a batch are rendered once; what comes out is what the processor gives for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from trl.data_utils import apply_chat_template

from surgery_r1.models import from_pretrained
from surgery_r1.train.sharing.image_ids import ImageIds
from surgery_r1.train.sharing.prompts_once import PromptsOnce


@pytest.fixture(scope="module")
def processor():
    return from_pretrained("tiny", with_model=False).processor


def conversation(question: str, *images: Image.Image) -> list[dict]:
    shown = [{"type": "image", "image": image} for image in images]
    return [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [*shown, {"type": "text", "text": question}]},
    ]


def batch() -> list[list[dict]]:
    """Two groups of three, one of two images, a lone row, and the first group's question about another frame."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (140, 168, 3), dtype=np.uint8)) for _ in range(3)]
    a, b, c = frames
    rows = [conversation("Where?", a)] * 2 + [conversation("What is it?", b, c)] * 3 + [conversation("Where?", b)]
    return [*rows, conversation("Where?", a), conversation("A longer question than the others?", c)]


def equal(ours, plain) -> None:
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        assert ours[name].equal(value) if torch.is_tensor(value) else ours[name] == value, name


@pytest.mark.parametrize("numbers", [False, True])
def test_tokens_and_images_are_the_processors_own(processor, numbers, monkeypatch):
    if numbers:
        monkeypatch.setattr(processor, "image_processor", ImageIds(processor.image_processor))
    once, conversations = PromptsOnce(processor), batch()
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    if not numbers:
        settings["processor_kwargs"] = {"images_kwargs": {"return_tensors": "pt"}}
    ours, plain = (one.apply_chat_template(conversation=conversations, **settings) for one in (once, processor))
    equal(ours, plain)
    assert len(ours["input_ids"]) == 8 and once.rendered == 4

    texts = [apply_chat_template({"prompt": one}, once)["prompt"] for one in conversations]
    assert texts == [apply_chat_template({"prompt": one}, processor)["prompt"] for one in conversations]
    assert once.rendered == 8
    images = [[part["image"] for part in one[1]["content"] if part["type"] == "image"] for one in conversations]
    given = {"images": images, "text": texts, "padding": True, "return_tensors": "pt"}
    equal(once(**given), processor(**given))


def test_what_it_does_not_know_goes_to_the_processor(processor):
    once = PromptsOnce(processor)
    called = [{"role": "user", "content": "Where?", "name": "surgeon"}]
    for conversations in ([called, called], [conversation("Where?")] * 2):
        settings = {"tokenize": conversations[0] is not called}
        assert once.apply_chat_template(conversations, **settings) == processor.apply_chat_template(
            conversations, **settings
        )
    assert once(text=["Where?", "Where?"])["input_ids"] == processor(text=["Where?", "Where?"])["input_ids"]
    assert once.image_token_id == processor.image_token_id
