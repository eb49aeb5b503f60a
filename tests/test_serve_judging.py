"""What a server says of a reply without the truth: confidence, agreement of its parts, what its rationale names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from surgery_r1 import codec
from surgery_r1.evaluate.confidence import Written, answer_probability
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.geometry import LocationRule, location_rule
from surgery_r1.inference import Reply
from surgery_r1.models.encode import MemoryImage, Prompt
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.serve.judging import agreement, sampled, spans

NORMAL = LocationRule("image", "normal")
FRAME = Image.new("RGB", (100, 80))
WHERE = "Where is suction located?"


def reply(question=WHERE, answer="left-top", box=(0, 0, 20, 20), rationale="") -> Reply:
    return Reply(question, answer, box, rationale, "", frame=FRAME)


def test_parts_that_agree():
    found = agreement(reply(rationale="the suction is seen left of and above the center, so it is left-top"), NORMAL)
    assert found == {
        "conclusion": "left-top",
        "box_place": "left-top",
        "rationale_answer": True,
        "answer_box": True,
        "rationale_box": True,
        "names_subject": True,
        "disagree": [],
    }


@pytest.mark.parametrize(
    ("changes", "disagree"),
    [
        ({"answer": "right-top"}, ["rationale_answer", "answer_box"]),
        ({"box": (60, 0, 90, 20)}, ["answer_box", "rationale_box"]),
        ({"rationale": "the suction is right-top"}, ["rationale_answer", "rationale_box"]),
        ({"rationale": "the stapler is left-top"}, ["names_subject"]),
        ({"rationale": "it is left-top"}, []),
        ({"rationale": "", "answer": "right-top"}, ["answer_box"]),
        ({"box": None, "answer": None}, []),
    ],
)
def test_parts_that_disagree(changes, disagree):
    assert agreement(reply(**{"rationale": "the suction is left-top", **changes}), NORMAL)["disagree"] == disagree


def test_what_cannot_be_told_is_not_told():
    told = agreement(reply(rationale="the suction is left-top"), None)
    assert (told["box_place"], told["answer_box"], told["rationale_box"]) == (None, None, None)
    other = agreement(reply("How many tools?", "two", rationale="two tools are seen"), NORMAL)
    assert other["conclusion"] is None and other["disagree"] == []
    state = agreement(reply("What is the state of suction?", "Idle", rationale="the suction is Idle"), NORMAL)
    assert state["answer_box"] is None and state["rationale_answer"] is True


def test_upside_down_labels():
    flipped = location_rule("image-flipped")
    found = agreement(reply(answer="left-bottom", rationale="the suction is left-bottom"), flipped)
    assert found["box_place"] == "left-bottom" and found["disagree"] == []
    named = spans(reply(answer="left-bottom", rationale="suction, lower left, is left-top"), flipped)
    # Words mean what is seen, classes what the labels mean.
    assert [one["box_px"] for one in named[1:]] == [[0, 40, 50, 80], [0, 40, 50, 80]]


def test_spans_of_a_rationale():
    text = "the suction and the stapler at the kidney: smoke, Suction at the bottom, so right-top"
    found = spans(reply(rationale=text), NORMAL)
    assert [(text[s["start"] : s["end"]], s["kind"], s["name"]) for s in found] == [
        ("suction", "tool", "suction"),
        ("stapler", "tool", "stapler"),
        ("kidney", "organ", "kidney"),
        ("Suction", "state", "Suction"),
        ("at the bottom", "half", "bottom"),
        ("right-top", "place", "right-top"),
    ]
    boxes = [s["box_px"] for s in found]
    assert boxes == [[0, 0, 20, 20], None, None, None, [0, 40, 100, 80], [50, 0, 100, 40]]
    assert spans(reply(rationale=None), NORMAL) == []


def test_samples_against_the_greedy_reply():
    drawn = [reply(), reply(answer=None, box=None), reply(box=(0, 0, 20, 10)), reply(answer="right-top")]
    found = sampled(reply(), drawn)
    assert found["agree"] == 0.5 and found["box_iou"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["answers"][0] == {"answer": "left-top", "count": 2} and found["n"] == 4
    assert sampled(reply(), []) is None


def test_probabilities_of_tokens_are_those_of_the_model(tiny):
    engine = TransformersEngine(tiny.model, tiny.processor, tiny.info.box_space, GenerationOptions(4, 16))
    banned = list(banned_tokens(tiny.tokenizer, tiny.model.generation_config.eos_token_id))
    # Pillow's own noise is another at every call.
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 160, 3), dtype=np.uint8)
    frames = [MemoryImage(Image.fromarray(pixels)) for pixels in noise]
    prompts = [Prompt((frame,), f"Find the {name}.") for frame in frames for name in ("suction", "stapler here")]
    [written] = engine.write(prompts)
    assert [one.text for one in written] == next(iter(engine.generate(prompts)))
    for prompt, one in zip(prompts, written, strict=True):
        inputs = engine.encoder([prompt])
        start, count = inputs["input_ids"].shape[1], len(one.ids)
        for name, value in (("input_ids", torch.tensor([one.ids])), ("attention_mask", torch.ones(1, count).long())):
            inputs[name] = torch.cat([inputs[name], value], 1)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, count).int()], 1)
        with torch.no_grad():
            logits = tiny.model(**inputs).logits[0, start - 1 : -1]
        # Behind its end a reply is padding.
        end = tiny.tokenizer.eos_token_id
        used = one.ids.index(end) + 1 if end in one.ids else count
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:used, 0]
        # What the model gives to tokens that no reply may hold is shared out among the others.
        out_of_reach = logits.softmax(-1)[:used, banned].sum(-1)
        got = torch.tensor(one.log_probs[:used])
        # One token at a time, so that nothing adds up: a few roundings of the largest score.
        rounding = 16 * torch.finfo(torch.float32).eps * logits.abs().max().item()
        torch.testing.assert_close(got, wanted - torch.log1p(-out_of_reach), rtol=0, atol=rounding)
        assert 2 * rounding < out_of_reach.max(), "the two distributions can be told apart"


def test_sampled_replies_differ_and_can_be_stopped(tiny):
    engine = TransformersEngine(tiny.model, tiny.processor, tiny.info.box_space, GenerationOptions(8, 24))
    prompt = Prompt((MemoryImage(Image.effect_noise((160, 128), 60).convert("RGB")),), "Describe the suction.")
    torch.manual_seed(0)
    [drawn] = engine.write([prompt] * 8, sampled=True)
    assert len({one.text for one in drawn}) > 1 and not any(one.log_probs for one in drawn)
    asked = []
    [stopped] = engine.write([prompt], stop=lambda: bool(asked.append(1)) or len(asked) >= 3)
    assert len(stopped[0].ids) == 3


@pytest.mark.parametrize("answer", ["kidney", "left-top", "Tissue_Manipulation"])
def test_confidence_is_the_product_over_the_answer_and_its_end(tiny, answer):
    before, after = "<think>because</think><answer>", "</answer><box>[1, 2, 3, 4]</box>"
    encode = lambda text: tiny.tokenizer(text)["input_ids"]  # noqa: E731
    ids = encode(before) + encode(answer) + encode(after)
    start, count = len(encode(before)), len(encode(answer)) + 1
    log_probs = [-5.0] * len(ids)
    log_probs[start : start + count] = [-0.1 * (i + 1) for i in range(count)]
    text = before + answer + after
    found = answer_probability(Written(text, ids, log_probs), tiny.tokenizer)
    assert found == pytest.approx(math.exp(sum(log_probs[start : start + count])))
    assert text[slice(*codec.answer_span(text))] == answer


def test_no_answer_has_no_confidence(tiny):
    for text in ("", "<answer>a</answer><answer>b</answer>", "<box>[1, 2, 3, 4]</box>", "<answer>kidney"):
        ids = tiny.tokenizer(text)["input_ids"]
        assert answer_probability(Written(text, ids, [0.0] * len(ids)), tiny.tokenizer) is None
    assert answer_probability(Written("<answer>kidney</answer>"), tiny.tokenizer) is None
