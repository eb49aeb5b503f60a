"""Rollouts from a server: what is asked of it, what its replies must be, and runs whose server is a second model.

vLLM itself is tried by ``make test-engines``. Here the wire is spoken by ``rollout_server.py``, and in whole runs the
server is an object in this process that samples, with transformers, from the weights that were written for it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from served import only_this_machine, serving
from small import small

from surgery_r1.chat.tokens import TokenReply
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.models.load import from_pretrained
from surgery_r1.train import stage
from surgery_r1.train.rollouts import sync
from surgery_r1.train.rollouts.files import read_rollouts, rollout_files
from surgery_r1.train.rollouts.gap import GapMeter
from surgery_r1.train.rollouts.sampling import Sampling
from surgery_r1.train.rollouts.server import Question, RolloutServer

pytest.importorskip("openai", reason="pip install 'surgery-r1[teacher]'")
SERVER = Path(__file__).with_name("rollout_server.py")
IDS = [3, 7, 7, 9]


@pytest.fixture
def serve(tmp_path, monkeypatch):
    for _ in only_this_machine(monkeypatch):
        yield from serving(SERVER, tmp_path, "--prompt", ",".join(map(str, IDS)))


def question(value: int = 0) -> Question:
    image = Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8))
    user = [{"type": "image", "image": image}, {"type": "text", "text": "Where?"}]
    return Question([{"role": "system", "content": "Reply."}, {"role": "user", "content": user}], IDS, 7, (7, 8))


def asked(endpoint: str, questions, count: int = 2, **limits):
    server = RolloutServer(ServerOptions(endpoint, retries=1), 8, 0.7)
    try:
        # Half as wide: what is sent is what this returns.
        return server.sample("served", questions, count, range(len(questions)), lambda image: image.resize((4, 8)))
    finally:
        server.close()


def test_what_is_asked_and_what_comes_back(serve):
    server = serve()
    groups = asked(server.endpoint, [question(1), question(1), question(2)])
    assert groups == [[TokenReply((i, 921), (-0.5, -0.5), "stop") for i in range(2)]] * 3
    settings = [request["settings"] for request in server.requests]
    assert sorted(each.pop("seed") for each in settings) == [0, 1, 2]
    whole = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    whole["logit_bias"] = {"7": -100, "8": -100}
    common = {
        "model": "served",
        "n": 2,
        "temperature": 0.7,
        "max_tokens": 8,
        "logprobs": True,
        "return_token_ids": True,
    }
    assert settings == [{**common, **whole, "frequency_penalty": 0.0}] * 3
    # Pixels arrive as the model reads them.
    seen = [Image.open(io.BytesIO(base64.b64decode(r["url"].partition(",")[2]))) for r in server.requests]
    assert sorted(int(np.asarray(image).max()) for image in seen) == [1, 1, 2]
    assert {image.size for image in seen} == {(4, 8)}


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("text", "gives text and not the tokens"),
        (
            "expanded",
            r"reads 33 tokens \(31 of images\) in a prompt that has 4 tokens \(2 of images\) here; another mod",
        ),
        ("other", "reads token 5 at place 0 of a prompt that has 3 there"),
        ("fewer", "gives 1 replies of 2"),
        ("short", "ended a reply with 'length' at 2 tokens, of the 8"),
        ("unlike,unlike", "1 tokens and 2 log-probabilities"),
        ("dead", "cannot be reached: .* see to the server and run again, with --resume"),
    ],
)
def test_a_server_that_is_not_right(serve, fault, match):
    server = serve(fault)
    with pytest.raises(SurgeryR1Error, match=match):
        asked(server.endpoint, [question(), question(), question()])
    # No other frame went out.
    assert len(server.requests) <= 2 and len({r["url"] for r in server.requests}) == 1


def test_flags_and_config_must_agree(dataset_folder, tmp_path, capsys):
    common = ["train", "rft", "--config", "tiny", "--data", str(dataset_folder), "--out", str(tmp_path / "run")]
    url = "http://127.0.0.1:9/v1"
    for more, match in (
        (["--endpoint", url], "--set rft.rollouts=server"),
        (["--set", "rft.rollouts=server"], "name it with --endpoint URL"),
        (["--sync", "x"], "--sync without --endpoint"),
        (["--set", "rft.trl.use_vllm=true"], "expands them again; let this project start vLLM"),
        (["--endpoint", url, "--set", "rft.rollouts=server", "rft.trl.top_p=0.9"], "rft.trl.top_p = 0.9 does not go"),
        (["--vllm", "/no/vllm"], "--vllm, but rft.rollouts = 'trainer'"),
        (["--vllm", "/no/vllm", "--set", "rft.rollouts=colocate"], "needs the vllm command, and /no/vllm is none"),
        (["--endpoint", url, "--set", "rft.rollouts=colocate"], "--endpoint, but rft.rollouts = 'colocate'"),
        (["--set", "rft.rollouts=server", "rft.vllm=['--x']", "--endpoint", url], "rft.vllm, but rft.rollouts = 'ser"),
        (["--vllm", sys.executable, "--set", "rft.rollouts=colocate", "rft.trl.top_k=5"], "does not go with rft.rollo"),
        (["--endpoint", "http://192.0.2.1/v1", "--set", "rft.rollouts=server"], "--allow-remote-frames"),
    ):
        assert main([*common, *more]) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_gap_is_over_all_tokens_of_a_step(caplog):
    meter, mask = GapMeter(), torch.tensor([[1, 1, 0]])
    meter.add(torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.0, -2.5, -9.0]]), mask)
    meter.add(torch.tensor([[-1.0, 0.0, 0.0]]), torch.tensor([[-1.25, 0.0, 0.0]]), torch.tensor([[1, 0, 0]]))
    gap = meter.take(lambda mine: torch.cat([mine, mine]))
    assert gap is not None and gap.mean == pytest.approx(0.25) and gap.largest == pytest.approx(0.5)
    assert meter.take(lambda mine: mine) is None and not caplog.records
    meter.add(torch.tensor([[-9.0]]), torch.tensor([[-1.0]]), torch.tensor([[1]]))
    meter.take(lambda mine: mine)
    assert "do all weights reach the server?" in caplog.text
    meter.add(torch.tensor([[float("nan")]]), torch.tensor([[-1.0]]), torch.tensor([[1]]))
    assert np.isnan(meter.take(lambda mine: mine).mean)


def test_a_disk_that_shows_files_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "_PAUSES", (0.0,) * 5)
    told, loaded = [(404, "No adapter found for x")] * 2 + [(200, "")], []

    class Late:
        name = "--endpoint http://here/v1"

        def control(self, path, body):
            loaded.append(body)
            return told.pop(0)

        def models(self):
            return [{"id": loaded[-1]["lora_name"], "root": loaded[-1]["lora_path"]}]

    server = Late()
    server.client = server
    weights = sync.AdapterSync(server, tmp_path / "sync", "run", tower=False)
    assert weights.put(lambda folder: (folder / "adapter").write_text("x"), 3) == "run-3"
    assert len(loaded) == 3 and (tmp_path / "sync" / "run-000003" / "adapter").is_file()
    told += [(404, "No adapter found for y")] * 9
    with pytest.raises(SurgeryR1Error, match="reads the folder of --sync"):
        weights.put(lambda folder: None, 4)
    weights.close()
    assert not (tmp_path / "sync").exists()


class SecondModel:
    """A server in this process: it samples from what was written for it, as vLLM would from what it has loaded."""

    name, temperature = "--endpoint http://here/v1", 1.0

    def __init__(self, start: Path, dies_after: int = 10**9, stale: bool = False) -> None:
        self.start, self.dies_after, self.stale = start, dies_after, stale
        self.client, self.adapter, self.version, self.calls = self, None, "default", []
        self.bundle = from_pretrained(start, device="cpu", dtype="float32")

    def info(self):
        return {"device_config": {"device": "cuda"}}

    def base(self):
        return "served"

    def meet(self):
        pass

    def close(self):
        pass

    def models(self):
        return [{"id": name, "root": root} for name, root in [self.adapter or ("served", str(self.start))]]

    def control(self, path, body=None):
        self.calls.append(path)
        if path == "/v1/load_lora_adapter" and not self.stale:
            # Onto a base that nobody has merged anything into.
            self.bundle = from_pretrained(body["lora_path"], device="cpu", dtype="float32")
        if path == "/v1/load_lora_adapter":
            self.adapter = body["lora_name"], body["lora_path"]
        if path == "/collective_rpc" and not self.stale:
            folder = Path(body["kwargs"]["weights_path"])
            self.bundle = replace(self.bundle, model=_loaded(folder))
        if path == "/update_weight_version":
            self.version = body["new_version"]
        return 200, json.dumps({"success": True, "weight_version": self.version})

    def sample(self, model, questions, count, seeds, as_read):
        if self.dies_after == 0:
            raise SurgeryR1Error(f"{self.name} cannot be reached", fix="go on with --resume")
        self.dies_after -= 1
        return [self._group(question, count, seed, as_read) for question, seed in zip(questions, seeds, strict=True)]

    def _group(self, question, count, seed, as_read):
        image = next(part["image"] for part in question.messages[1]["content"] if part["type"] == "image")
        # As the model reads it, which the server's own resizing leaves as it is.
        sent = as_read(image)
        assert (sent.width % 28, sent.height % 28) == (0, 0)
        shown = self.bundle.processor.image_processor(images=[sent], return_tensors="pt")
        ids, model = torch.tensor([list(question.ids)] * count), self.bundle.model.eval()
        inputs = {
            "pixel_values": shown["pixel_values"].repeat(count, 1),
            "mm_token_type_ids": (ids == question.image_token).int(),
        }
        inputs["image_grid_thw"] = shown["image_grid_thw"].repeat(count, 1)
        before = torch.get_rng_state()
        torch.manual_seed(seed)
        with torch.no_grad():
            done = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=24, do_sample=True,
                top_k=0, use_cache=True, return_dict_in_generate=True, output_logits=True,
                pad_token_id=self.bundle.tokenizer.pad_token_id,
            )  # fmt: skip
        torch.set_rng_state(before)
        tokens = done.sequences[:, ids.shape[1] :]
        logs = torch.stack(done.logits, 1).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        replies = []
        for row, log in zip(tokens.tolist(), logs.tolist(), strict=True):
            end = (
                row.index(self.bundle.tokenizer.eos_token_id) + 1
                if self.bundle.tokenizer.eos_token_id in row
                else len(row)
            )
            replies.append(TokenReply(tuple(row[:end]), tuple(log[:end]), "stop"))
        return replies


def _loaded(folder: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def trained(dataset, tmp_path, monkeypatch):
    """A function that runs RFT with a server: ``trained(server, out, ...)``; the steps that the run has logged."""

    def run(server, out, *, lora=False, resume=False, **changes):
        config = small(rft_rollouts="server", **changes)
        config = replace(config, lora=replace(config.lora, enabled=lora))
        where = tmp_path / "sync"
        monkeypatch.setattr(stage, "open_sampling", lambda *_: Sampling(server, where, "run-1", config.rft.gap_bound))
        try:
            stage.train("rft", config, dataset, tmp_path / out, quiet=True, resume=resume)
        finally:
            lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
            run.steps = [record for record in map(json.loads, lines) if "reward" in record]
            # What went to the server is gone.
            assert not where.exists()
        return run.steps

    return run


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_with_a_server_has_its_weights_at_every_step(tiny, trained, tmp_path, lora):
    server = SecondModel(Path(tiny.folder))
    steps = trained(server, "run", lora=lora, rft_learning_rate=1e-2)
    assert len(steps) == 4
    assert [len(read_rollouts(path)) for path in rollout_files(tmp_path / "run").values()] == [2] * 4
    # Rounding: weights that change so much would show.
    assert max(step["sampler/gap_max"] for step in steps) < 1e-3
    assert len({step["reward"] for step in steps}) > 1
    loads = [path for path in server.calls if path in ("/v1/load_lora_adapter", "/collective_rpc")]
    assert loads == ["/v1/load_lora_adapter" if lora else "/collective_rpc"] * 4
    if not lora:
        at = server.calls.index("/collective_rpc")
        assert server.calls[at + 1 : at + 4] == ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]


@pytest.mark.slow
def test_a_server_that_does_not_take_weights_stops_the_run(tiny, trained, tmp_path, caplog):
    with pytest.raises(
        SurgeryR1Error, match=r"step \d: .* nats a token from the trainer's .* above 0\.01; see that both"
    ):
        trained(SecondModel(Path(tiny.folder), stale=True), "run", rft_learning_rate=3e-2)
    done = len(trained.steps)
    assert 1 <= done < 4 and (tmp_path / "run" / "checkpoints" / f"checkpoint-{done}").is_dir()
    assert "keeps the" in caplog.text
    # With a bound that allows more the run goes on from there.
    assert (
        len(trained(SecondModel(Path(tiny.folder)), "run", rft_learning_rate=3e-2, rft_gap_bound=9.0, resume=True)) == 4
    )


@pytest.mark.slow
def test_a_server_that_dies_loses_no_step(tiny, trained, tmp_path):
    """The run that goes on equals the one whose server lived, step by step."""
    start = Path(tiny.folder)
    whole = trained(SecondModel(start), "whole")
    with pytest.raises(SurgeryR1Error, match="cannot be reached"):
        trained(SecondModel(start, dies_after=3), "run")
    assert len(trained.steps) == 3
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json").is_file()
    resumed = trained(SecondModel(start), "run", resume=True)
    timed = re.compile("time|seconds|runtime|per_second")
    strip = lambda steps: [{k: v for k, v in step.items() if not timed.search(k)} for step in steps]  # noqa: E731
    assert strip(resumed) == strip(whole)


@pytest.mark.parametrize("told", ['{"vllm_config": "model=\'x\', dtype=bfloat16"}', "<html>", "[]"])
def test_a_server_that_tells_its_configuration_otherwise_tells_none(monkeypatch, told):
    server = RolloutServer(ServerOptions("http://127.0.0.1:1/v1"), 8, 1.0)
    monkeypatch.setattr(server.client, "control", lambda path, body=None: (200, told))
    assert server.info() == {}
