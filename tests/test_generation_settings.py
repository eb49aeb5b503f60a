"""Of a checkpoint's generation settings only the token ids count: replies are what the one who asks has asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from small import small

import surgery_r1
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.run import predict_with_model
from surgery_r1.models import from_pretrained
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer
from surgery_r1.train.stage import train

#: Each changes replies, or stops generation with an error, where it is let in.
SETTINGS = {
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 12,
    "min_length": 400,
    "max_length": 3,
    "max_time": 1e-6,
    "num_beams": 3,
    "num_return_sequences": 2,
    "bad_words_ids": [[5], [6], [7, 8]],
    "suppress_tokens": list(range(100, 400)),
    "begin_suppress_tokens": list(range(100, 400)),
    "sequence_bias": [[[5], 50.0]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 921,
    "length_penalty": -3.0,
    "stop_strings": ["e", ">"],
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": [1, 3.0],
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "do_sample": True,
    "temperature": 9.0,
    "top_p": 0.1,
    "top_k": 1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "guidance_scale": 2.0,
    "watermarking_config": {"bias": 5.0},
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 2,
    "cache_implementation": "static",
    "use_cache": False,
    "return_dict_in_generate": True,
    "output_scores": True,
}


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A model that has begun to answer: its replies differ, and end by themselves."""
    out = tmp_path_factory.mktemp("trained") / "run"
    config = small(sft_max_steps=12, sft_eval_every=12, sft_learning_rate=3e-3, eval_dev_samples=1)
    train("sft", config, dataset, out, quiet=True)
    return out / "best"


def with_settings(model, folder, settings):
    """A copy of a model folder with generation settings of its own."""
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def replies(model, dataset, out) -> list[list[str]]:
    """What ``ask`` and ``predict`` get."""
    samples = dataset.split("dev")[:6]
    pairs = [(dataset.image_path(sample), sample.question) for sample in samples]
    asked = [reply.text for reply in surgery_r1.load(model, device="cpu").ask_many(pairs, max_new_tokens=24)]
    predict_with_model(model, dataset, "dev", out, GenerationOptions(16, 24), limit=6)
    return [asked, [json.loads(line)["text"] for line in out.read_text().splitlines()]]


@pytest.fixture(scope="module")
def clean(trained, dataset, tmp_path_factory):
    """The replies without any setting."""
    found = replies(trained, dataset, tmp_path_factory.mktemp("clean") / "p.jsonl")
    assert len(set(found[0])) > 1 and all(found[0])
    return found


def test_each_alone_changes_no_reply(trained, dataset, clean, tmp_path):
    """Asked of one loaded model, whose settings are read anew from each folder."""
    from surgery_r1.models.load import generation_config

    model = surgery_r1.load(trained, device="cpu")
    pairs = [(dataset.image_path(sample), sample.question) for sample in dataset.split("dev")[:6]]
    bundle = model._bundle
    for name, value in SETTINGS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 921, name: value}))
        bundle.model.generation_config = generation_config(folder, bundle.tokenizer)
        found = [reply.text for reply in model.ask_many(pairs, max_new_tokens=24)]
        assert found == clean[0], name


@pytest.mark.parametrize("chosen", [("num_beams",), ("min_new_tokens", "max_time"), tuple(SETTINGS)])
def test_a_folder_with_settings_replies_as_without(trained, dataset, clean, tmp_path, chosen):
    model = with_settings(trained, tmp_path / "model", {name: SETTINGS[name] for name in chosen})
    assert replies(model, dataset, tmp_path / "p.jsonl") == clean


def rollouts(model, dataset, out, monkeypatch) -> list:
    """The tokens of the completions of one RFT step."""
    seen = []
    plain = SharedFrameGRPOTrainer._generate_single_turn

    def watched(self, *args, **kwargs):
        result = plain(self, *args, **kwargs)
        seen.append(result[0])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(SharedFrameGRPOTrainer, "_generate_single_turn", watched)
        config = small(rft_max_steps=1, rft_eval_every=1, eval_dev_samples=1)
        config = replace(config, eval=replace(config.eval, choose="last"))
        train("rft", config, dataset, out, base=model, quiet=True)
    return seen


def test_rollouts_are_those_of_a_clean_folder(trained, dataset, tmp_path, monkeypatch):
    model = with_settings(trained, tmp_path / "model", SETTINGS)
    ours = rollouts(model, dataset, tmp_path / "ours", monkeypatch)
    assert ours and ours == rollouts(trained, dataset, tmp_path / "theirs", monkeypatch)
    # A trained model stands on its own: what it was started from does not come along.
    saved = json.loads((tmp_path / "ours/best/generation_config.json").read_text())
    assert not set(saved) & set(SETTINGS) - {"use_cache"}


def test_several_tokens_end_a_reply(trained, dataset, tmp_path):
    """The tokens of the folder, and the tokenizer's own, which training has taught."""
    tokenizer = from_pretrained(trained, with_model=False).tokenizer
    opening, closing = tokenizer.convert_tokens_to_ids(["<answer>", "</think>"])
    model = with_settings(trained, tmp_path / "model", {"eos_token_id": [opening, closing]})
    bundle = from_pretrained(model, device="cpu")
    assert bundle.model.generation_config.eos_token_id == [opening, closing, tokenizer.eos_token_id]
    texts, cut = replies(trained, dataset, tmp_path / "p.jsonl")[0], replies(model, dataset, tmp_path / "q.jsonl")[0]
    for text, short in zip(texts, cut, strict=True):
        ends = [text.find(tag) + len(tag) for tag in ("<answer>", "</think>") if tag in text]
        assert short == text[: min(ends, default=len(text))]
    assert texts != cut


def test_token_ids_that_are_none_are_refused(trained, tmp_path):
    model = with_settings(trained, tmp_path / "model", {"eos_token_id": ["<|im_end|>"]})
    with pytest.raises(SurgeryR1Error, match=r"generation_config.json: eos_token_id = \['<\|im_end\|>'\]; write token"):
        from_pretrained(model)


def test_a_folder_without_settings_takes_the_tokenizers(tmp_path):
    shutil.copytree(TINY_BASE, tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    bundle = from_pretrained(tmp_path / "model", device="cpu")
    ids = bundle.model.generation_config
    assert (ids.eos_token_id, ids.pad_token_id) == (bundle.tokenizer.eos_token_id, bundle.tokenizer.pad_token_id)
