"""Models that were not trained here: their own words, their own boxes, servers that obey and that do not."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from served import only_this_machine, serving

from surgery_r1.chat.reply import ChatReply
from surgery_r1.cli import main
from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import SPACES
from surgery_r1.evaluate.native.boxes import NATIVE_FORMATS, NativeBoxes
from surgery_r1.evaluate.native.local import open_native
from surgery_r1.evaluate.native.questions import NativeOptions, NativeQuestions
from surgery_r1.evaluate.native.server import NativeServer
from surgery_r1.evaluate.native.wording import NativePrompt, read_native
from surgery_r1.geometry import iou

SERVER = Path(__file__).with_name("native_server.py")
QUESTIONS = 38
VIEW = View(1280, 1024, 1120, 896)
ANSWERS = ("Idle", "Tissue_Manipulation", "Suction", "suction")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    yield from only_this_machine(monkeypatch)


# --------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("form", NATIVE_FORMATS)
def test_boxes_come_back_as_they_were_written(space, form):
    boxes, box = NativeBoxes(space, form), (120.0, 80.0, 520.0, 430.0)
    numbers = boxes.from_px(box, VIEW)
    assert all(isinstance(value, int) for value in numbers) == (space != "norm1")
    assert iou(boxes.to_px(numbers, VIEW), box) > (0.96 if space == "norm100" else 0.99)


def test_what_each_format_means():
    said = [50, 100, 150, 300]
    assert NativeBoxes("norm1000").to_px(said, VIEW) == pytest.approx((64, 102.4, 192, 307.2))
    assert NativeBoxes("norm1000", "yxyx").to_px(said, VIEW) == pytest.approx((128, 51.2, 384, 153.6))
    assert NativeBoxes("source", "xywh").to_px(said, VIEW) == (50, 100, 200, 400)
    assert NativeBoxes("source", "cxcywh").to_px(said, VIEW) == (-25, -50, 125, 250)
    assert NativeBoxes("pixels").to_px([0, 0, 560, 448], VIEW) == (0, 0, 640, 512)
    with pytest.raises(SurgeryR1Error, match="--box-format xyz"):
        NativeBoxes("source", "xyz")


# ------------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("text", "answer", "box", "problems"),
    [
        ('{"label": "Idle", "bbox_2d": [1, 2, 30, 40]}', "Idle", (1, 2, 30, 40), ()),
        ('Sure:\n```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "Idle"}]\n```', "Idle", (1, 2, 30, 40), ()),
        ('{"answer": "tissue manipulation.", "bbox": [[1, 2, 30, 40]]}', "Tissue_Manipulation", (1, 2, 30, 40),
         ("respelled",)),
        # Two classes that differ in case alone: neither is guessed.
        ('{"label": "SUCTION", "bbox_2d": [1, 2, 30, 40]}', "SUCTION", (1, 2, 30, 40), ()),
        ('{"label": "Cutting", "bbox_2d": [1, 2, 30, 40]}', "Cutting", (1, 2, 30, 40), ()),
        ('{"label": "Idle"}', "Idle", None, ("no_box",)),
        ('{"bbox_2d": [1, 2, 30, 40]}', None, (1, 2, 30, 40), ("no_answer",)),
        ('{"label": "Idle", "bbox_2d": [30, 2, 1, 40]}', "Idle", None, ("inverted_box",)),
        ('{"label": "Idle", "bbox_2d": [1, 2, 30]}', "Idle", None, ("bad_box",)),
        ('{"label": "Idle", "bbox_2d": [1, 2, 30, NaN]}', None, None, ("no_json",)),
        ('{"label": "Idle", "bbox_2d": [1, 2, 30, 1e99]}', "Idle", None, ("bad_box",)),
        ('{"label": ["Idle"], "bbox_2d": {"a": 1}}', None, None, ("empty_answer", "bad_box")),
        ('[{"label": "Idle", "bbox_2d": [1, 2, 30, 40]}, {"label": "Suction", "bbox_2d": [1, 2, 30, 40]}]', None,
         (1, 2, 30, 40), ("several_answers",)),
        ('{"label": "Idle", "bbox_2d": [1, 2, 3, 4]} {"label": "Idle", "bbox_2d": [1, 2, 30, 40]}', "Idle", None,
         ("several_boxes",)),
        ('<think>{"label": "Suction"}</think>{"label": "Idle", "bbox_2d": [1, 2, 30, 40]}', "Idle", (1, 2, 30, 40), ()),
        ('<think>{"label": "Idle", "bbox_2d": [1, 2, 30, 40]}', None, None, ("empty",)),
        ('{"reasoning": "so</think>", "label": "Idle", "bbox_2d": [1, 2, 30, 40]}', "Idle", (1, 2, 30, 40), ()),
        ("the forceps are idle", None, None, ("no_json",)),
        ('{"label": "Idle", "bbox_2d": [1, 2', None, None, ("no_json",)),
        ("", None, None, ("empty",)),
        ("[" * 30_000, None, None, ("no_json",)),
        ('{"a":' * 30_000, None, None, ("no_json",)),
    ],
)  # fmt: skip
def test_replies_are_read(text, answer, box, problems):
    read = read_native(text, NativePrompt("?", ANSWERS, NativeBoxes("source"), False), VIEW)
    assert (read.answer, read.box_px, read.problems) == (answer, box, problems)


def test_rationales_of_replies():
    prompt = NativePrompt("?", ANSWERS, None, True)
    assert read_native('{"reasoning": " at rest ", "label": "Idle"}', prompt, VIEW).rationale == "at rest"
    assert read_native('<think>hm</think>{"label": "Idle"}', prompt, VIEW).rationale == "hm"
    assert read_native("<think>hm", prompt, VIEW).rationale == "hm"
    assert read_native('{"label": "Idle"}', prompt, VIEW) == read_native(
        '{"reasoning": 3, "label": "Idle"}', prompt, VIEW
    )


def test_a_schema_lets_through_what_is_asked_for_alone():
    schema = NativePrompt("?", ANSWERS, NativeBoxes("norm1"), True).schema()
    assert [*schema["properties"]] == schema["required"] == ["reasoning", "label", "bbox_2d"]
    assert schema["properties"]["label"]["enum"] == [*ANSWERS] and schema["additionalProperties"] is False
    assert schema["properties"]["bbox_2d"]["items"] == {"type": "number"}
    assert [*NativePrompt("?", ANSWERS, None, False).schema()["properties"]] == ["label"]


# ------------------------------------------------------------------------------------------------------ questions


def asked(dataset, split="val", **options) -> NativeQuestions:
    boxes = NativeBoxes("norm1000")
    return NativeQuestions(dataset, split, NativeOptions(boxes, **options), lambda w, h: View(w, h, 0, 0))


def test_examples_are_of_the_kind_out_of_train_and_read_back(dataset):
    questions = asked(dataset, few_shot=3)
    for sample in dataset.split("val"):
        messages = questions.conversation(sample, lambda path, view: {"type": "image", "path": path})
        shown = [message["content"][0]["path"] for message in messages[::2]]
        assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]
        assert len(set(shown)) == 4 and shown[-1] == dataset.image_path(sample)
        frames = {dataset.image_path(s) for s in dataset.split("train")}
        assert set(shown[:3]) <= frames
        last = messages[-1]["content"][-1]["text"]
        assert (
            last.startswith(sample.question)
            and f"Answers: {', '.join(dataset.answers['endovis18'][sample.kind])}." in last
        )
        for user, assistant in zip(messages[:-1:2], messages[1::2], strict=True):
            prompt = questions.prompt_of(sample)
            read = read_native(assistant["content"][0]["text"], prompt, View(160, 128, 0, 0))
            truths = [s for s in dataset.split("train") if s.question == user["content"][1]["text"].splitlines()[0]]
            assert not read.problems and read.rationale and read.answer in prompt.answers
            assert max(iou(read.box_px, truth.box_px) for truth in truths) > 0.9


def test_examples_that_are_not_there(dataset):
    with pytest.raises(SurgeryR1Error, match="takes its examples from train"):
        asked(dataset, "train", few_shot=2)
    with pytest.raises(SurgeryR1Error, match=r"--few-shot 500: train has \d+ frames"):
        asked(dataset, few_shot=500)


# --------------------------------------------------------------------------------------------------------- server


@pytest.fixture(scope="module")
def answers(dataset) -> dict[str, tuple[str, list[int]]]:
    """The first truth of each question text, in thousandths."""
    found = {}
    for sample in dataset.split("val"):
        box = NativeBoxes("norm1000").from_px(sample.box_px, View(sample.width, sample.height, 0, 0))
        found.setdefault(sample.question, (sample.answer, box))
    return found


@pytest.fixture
def serve(tmp_path, answers):
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers))
    yield from serving(SERVER, tmp_path, "--answers", str(file))


def predict(dataset_folder, out, server, *args, model="qwen3-vl", space="norm1000") -> int:
    command = ["predict", "--prompt", "native", "--model", model, "--endpoint", server.endpoint, "--retries", "2"]
    command += ["--data", str(dataset_folder), "--split", "val", "--out", str(out), *args]
    return main([*command, "--box-space", space] if space else command)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fails(capsys, code: int, match: str) -> None:
    error = capsys.readouterr().err
    assert code == 2 and re.search(match, error), error


@pytest.mark.parametrize("obeys", ["structured_outputs", "response_format"])
def test_an_obedient_server(dataset, dataset_folder, answers, serve, tmp_path, obeys):
    server, out = serve("", 0.0, "--obeys", obeys), tmp_path / "p.jsonl"
    assert predict(dataset_folder, out, server, "--few-shot", "2") == 0
    found, samples = lines(out), dataset.split("val")
    assert [line["id"] for line in found] == [sample.id for sample in samples]
    for line, sample in zip(found, samples, strict=True):
        label, box = answers[sample.question]
        assert (line["answer"], line["reasoning"], line["reply_problems"]) == (label, f"it is {label}", [])
        assert line["box_px"] == pytest.approx([v * s / 1000 for v, s in zip(box, (160, 128) * 2, strict=True)])
    assert {line["served_as"] for line in found} == {"served"} and found[0]["asked"]["constraint"] == obeys
    probes = [r for r in server.requests if not r["sizes"]]
    assert len(probes) == (1 if obeys == "structured_outputs" else 2) and server.requests[: len(probes)] == probes
    for request in server.requests[len(probes) :]:
        assert request["roles"] == ["user", "assistant"] * 2 + ["user"] and len(request["sizes"]) == 3
        assert {obeys, "temperature", "max_tokens", "model"} == set(request["settings"])
    scores = tmp_path / "scores"
    assert main(["score", str(out), "--data", str(dataset_folder), "--split", "val", "--out", str(scores)]) == 0
    metrics = json.loads((scores / "metrics.json").read_text())
    assert metrics["parse_failure_rate"] == 0 and metrics["problems"] == {} and metrics["box_space"] == "source"
    assert "structured" in metrics["predicted_with"]["asked"] or obeys in metrics["predicted_with"]["asked"]
    one = [str(out), "--data", str(dataset_folder), "--out", str(tmp_path / "autopsy"), "--json"]
    assert main(["autopsy", *one]) == 0


def test_a_model_that_writes_blanks_where_the_schema_lets_it_is_told(dataset_folder, serve, tmp_path, capsys):
    """As vLLM 0.31 does with the tiny base: a schema bounds strings and numbers, not what stands between them."""
    server = serve("blanks,blanks")
    message = r"obeys a JSON schema, but its model writes blanks .*disable_any_whitespace"
    fails(capsys, predict(dataset_folder, tmp_path / "p.jsonl", server), message)
    assert not any(request["sizes"] for request in server.requests)


def test_a_server_that_obeys_nothing_is_refused_before_a_frame_goes_out(dataset_folder, serve, tmp_path, capsys):
    server = serve("", 0.0, "--obeys", "none")
    fails(capsys, predict(dataset_folder, tmp_path / "p.jsonl", server), "no reply to a JSON schema.*--unconstrained")
    assert len(server.requests) == 2 and not any(request["image"] for request in server.requests)
    deaf = serve("", 0.0, "--refuses")
    fails(capsys, predict(dataset_folder, tmp_path / "p.jsonl", deaf), r"refuses it: .*422.*--unconstrained")
    assert predict(dataset_folder, tmp_path / "p.jsonl", server, "--unconstrained", "--no-reasoning") == 0
    found = lines(tmp_path / "p.jsonl")
    assert {line["asked"]["constraint"] for line in found} == {"none"} and "reasoning" not in found[0]
    assert all(line["answer"] and line["box_px"] and line["reply"].startswith("Here it is") for line in found)
    settings = server.requests[-1]["settings"]
    assert "structured_outputs" not in settings and "response_format" not in settings


def test_a_model_that_changes_in_the_middle_costs_nothing(dataset, dataset_folder, serve, tmp_path, capsys):
    out, server = tmp_path / "p.jsonl", serve("none," * 11 + "other")
    code = predict(dataset_folder, out, server, "--concurrency", "1")
    fails(capsys, code, "'another' answers, where 'served' did before.*what it has answered is kept")
    kept = lines(tmp_path / "p.jsonl.partial")
    assert len(kept) == 10 and {line["served_as"] for line in kept} == {"served"}
    elsewhere = serve("other," * 60)
    fails(capsys, predict(dataset_folder, out, elsewhere), "was started with served_as='served', now it is 'another'")
    again = serve()
    assert predict(dataset_folder, out, again) == 0 and len(again.requests) == QUESTIONS - 10 + 1
    assert [line["id"] for line in lines(out)] == [sample.id for sample in dataset.split("val")]


def test_what_servers_do(dataset_folder, serve, tmp_path, capsys, caplog):
    """Faults that pass, states that differ, replies kept back and cut off: all kept, told and counted."""
    out, server = tmp_path / "p.jsonl", serve("none,429,filter,state,500,length,state,none")
    assert predict(dataset_folder, out, server, "--concurrency", "1") == 0
    found = lines(out)
    assert [line["reply_problems"] for line in found[:3]] == [["empty", "filtered"], [], ["no_json", "cut_off"]]
    assert found[1]["fingerprint"] == "fp_2" and "fingerprint" not in found[0]
    scores = ["--data", str(dataset_folder), "--split", "val", "--out", str(tmp_path / "s")]
    assert main(["score", str(out), *scores]) == 0
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert {"filtered": 1, "cut_off": 1, "no_json": 1}.items() <= metrics["problems"].items()
    assert metrics["parse_failure_rate"] == pytest.approx(2 / QUESTIONS)
    broken = serve("none,none,abort")
    code = predict(dataset_folder, tmp_path / "q.jsonl", broken, "--concurrency", "1")
    fails(capsys, code, "ended a reply with 'abort'")
    assert len(lines(tmp_path / "q.jsonl.partial")) == 1


def test_pixels_are_those_of_the_image_that_is_sent(dataset, dataset_folder, serve, tmp_path, capsys):
    out, server = tmp_path / "p.jsonl", serve()
    assert predict(dataset_folder, out, server, "--max-pixels", "12000", space="pixels") == 0
    line, sample = lines(out)[0], dataset.split("val")[0]
    size = (line["input_width"], line["input_height"])
    assert {tuple(r["sizes"][0]) for r in server.requests[1:]} == {size} and size[0] % 28 == size[1] % 28 == 0
    assert f"{size[0]} wide and {size[1]} high" in server.requests[1]["texts"][0]
    assert size[0] * size[1] <= 12000 and line["max_pixels"] == 12000 and sample.width == 160
    small = serve("none,small")
    fails(capsys, predict(dataset_folder, tmp_path / "q.jsonl", small, space="pixels"), "makes them smaller")
    # A folder here says how its family writes boxes, and how it resizes.
    one = serve()
    assert predict(dataset_folder, tmp_path / "r.jsonl", one, "--limit", "1", model="tiny", space=None) == 0
    assert lines(tmp_path / "r.jsonl")[0]["asked"]["boxes"] == "xyxy, norm100"


def test_pixels_are_counted_of_each_image_that_is_sent(dataset):
    """Examples may lie on frames of another size than the question's."""
    options = NativeOptions(NativeBoxes("pixels"), few_shot=2)
    questions = NativeQuestions(dataset, "val", options, lambda width, height: View(width, height, width, height))
    server = NativeServer(SimpleNamespace(name="S"), "served", "served", questions, options, "none", 1, factor=28)
    sample = replace(dataset.split("val")[0], width=320, height=240)
    request = server._request(sample)
    parts = [part for message in request.messages for part in message["content"] if part["type"] == "image_url"]
    sizes = [Image.open(BytesIO(b64decode(part["image_url"]["url"].partition(",")[2]))).size for part in parts]
    assert sizes[:2] == [(160, 128)] * 2 and sizes[2] == (320, 240)
    assert request.pixels == sum(width * height for width, height in sizes)
    reply = ChatReply("{}", "stop", model="served", prompt_tokens=request.pixels // 28**2)
    server._check(request, reply)
    with pytest.raises(SurgeryR1Error, match="makes them smaller"):
        server._check(request, replace(reply, prompt_tokens=reply.prompt_tokens - 1))


def test_what_is_not_known_is_not_guessed(dataset_folder, tmp_path, capsys, serve, no_network):
    server, out = serve(), tmp_path / "p.jsonl"
    fails(capsys, predict(dataset_folder, out, server, space=None), "no folder here says.*--box-space pixels")
    server.endpoint, here = "http://192.0.2.7/v1", server.endpoint
    fails(capsys, predict(dataset_folder, out, server), "not on this machine.*--allow-remote-frames")
    server.endpoint = here
    own = ["predict", "--model", "tiny", "--data", str(dataset_folder), "--split", "val", "--out", str(out)]
    fails(capsys, main([*own, "--few-shot", "2"]), "--few-shot without --prompt native")
    fails(capsys, main([*own, "--prompt", "native", "--unconstrained"]), "--unconstrained without --endpoint")
    fails(capsys, main([*own, "--prompt", "native", "--engine", "vllm"]), "--engine vllm with --prompt native")
    assert not server.requests and not no_network


def test_a_model_in_this_process(dataset_folder, tmp_path):
    """The tiny base writes no JSON of its own accord: every reply is kept, and counted."""
    out = tmp_path / "p.jsonl"
    command = ["predict", "--prompt", "native", "--model", "tiny", "--data", str(dataset_folder), "--split", "val"]
    command += ["--limit", "5", "--few-shot", "1", "--max-new-tokens", "6", "--batch-size", "2", "--out", str(out)]
    assert main(command) == 0
    found = lines(out)
    assert len(found) == 5 and all(line["reply"] and "no_json" in line["reply_problems"] for line in found)
    assert {line["engine"] for line in found} == {"transformers"} and found[0]["weights_sha256"]


@pytest.fixture
def llava(tmp_path, tiny):
    """A model of a family that nothing here knows; small and random."""
    import copy

    import transformers as hf

    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    template = (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}"
        "{{ p.text }}{% endif %}{% endfor %} {% endfor %}assistant: "
    )
    more = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    hf.LlavaProcessor(images, tokenizer, chat_template=template, image_token="<image>", **more).save_pretrained(
        tmp_path
    )
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**shape, image_size=28, patch_size=14).to_dict(),
        text_config=hf.LlamaConfig(**shape, vocab_size=len(tokenizer), num_key_value_heads=2).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.generation_config.repetition_penalty = 1.05
    model.save_pretrained(tmp_path)
    return tmp_path


def test_penalties_of_a_folder_do_not_bend_what_is_measured(llava):
    assert json.loads((llava / "generation_config.json").read_text())["repetition_penalty"] == 1.05
    assert open_native(llava).model.generation_config.repetition_penalty in (None, 1.0)


def test_a_family_that_nothing_here_knows(llava, dataset_folder, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    command = ["predict", "--prompt", "native", "--model", str(llava), "--data", str(dataset_folder), "--split", "val"]
    command += ["--limit", "3", "--few-shot", "1", "--max-new-tokens", "4", "--batch-size", "2", "--out", str(out)]
    fails(capsys, main(command), "in which units a 'llava' model writes boxes is not known.*--box-space")
    fails(capsys, main([*command, "--box-space", "pixels"]), "how a 'llava' model resizes a frame is not known")
    fails(capsys, main([*command, "--max-pixels", "9"]), "--max-pixels with a 'llava' model")
    assert main([*command, "--box-space", "norm1", "--box-format", "xywh"]) == 0
    assert [line["asked"]["boxes"] for line in lines(out)] == ["xywh, norm1"] * 3 and "input_width" not in lines(out)[0]


def test_half_a_character_can_be_written():
    prompt = NativePrompt("?", ("Idle",), None, True)
    read = read_native('{"reasoning": "seen \\ud83d", "label": "Id\\ud83dle"}', prompt, View(100, 80, 0, 0))
    assert (read.rationale, read.answer) == ("seen ?", "Id?le")
