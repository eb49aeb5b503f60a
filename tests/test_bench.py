"""Benchmarks: counted operations by hand, and every kind once on work of a few tokens."""

from __future__ import annotations

import json

import pytest

from surgery_r1 import prompts
from surgery_r1.bench import operations
from surgery_r1.bench.compare import bench
from surgery_r1.bench.shapes import Work, build_processor, questions, random_model
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing.prefix_tree import TreeLayout

SMALL = ["--image-tokens", "30", "--prompt-tokens", "80", "--pairs", "2", "--threads", "1"]


def test_a_forests_pairs_are_its_rows_pairs_without_the_repeats():
    # A prefix of 10 with two leaves of 3, and a lone row of 4.
    layout = TreeLayout(((0, 10, 16), (10, 13, 13), (13, 16, 16), (16, 20, 20)))
    assert operations.tree_pairs(layout) == operations.row_pairs([13, 13, 4]) - operations.row_pairs([10])


def test_prediction_for_the_7b_model():
    """The figures of the issue: 5.3 with one question and 128 tokens, 9.7 with six, 20 with six and 32."""
    for asked, tokens, expected in ((1, 128, 5.3), (6, 128, 9.7), (6, 32, 20.0)):
        work = Work(shape="7b", questions=asked, completion_tokens=tokens, device="cuda")
        rows = asked * work.generations
        length = 1280 + 150 + tokens
        plain = {"tokens": rows * length, "pairs": operations.row_pairs([length]) * rows, "images": rows}
        # Frame, question without its last token, and leaves that start with it and end before their last.
        prefix, question, leaf = 1280, 149, tokens
        spans, at = [(0, prefix, prefix + asked * (question + 8 * leaf))], prefix
        for _ in range(asked):
            spans.append((at, at + question, at + question + 8 * leaf))
            at += question
            for _ in range(8):
                spans.append((at, at + leaf, at + leaf))
                at += leaf
        layout = TreeLayout(tuple(spans))
        ours = {"tokens": layout.size, "pairs": operations.tree_pairs(layout), "images": 1}
        ratio = operations.training(work, **plain, heads=rows * tokens) / operations.training(
            work, **ours, heads=rows * tokens
        )
        assert ratio == pytest.approx(expected, rel=0.06)


def test_counted_weights_are_the_models():
    work = Work(image_tokens=30)
    model = random_model(work, build_processor(work, deduplicate=True).tokenizer)
    layers = sum(p.numel() for n, p in model.model.language_model.layers.named_parameters() if p.dim() == 2)
    assert operations.cost(work).token == 2 * layers
    tower = sum(p.numel() for p in model.model.visual.parameters())
    # In proportion of the 7B model, whose tower has a tenth of its language model's weights.
    assert 0.07 < tower / layers < 0.13


def test_prompts_have_the_length_asked_for():
    work = Work(image_tokens=30, prompt_tokens=90, questions=4)
    processor = build_processor(work, deduplicate=False)
    from surgery_r1.models.encode import PromptEncoder

    render = PromptEncoder(processor, "norm100")._render
    texts = [render(prompts.user_text(text), 1) for text in questions(work, processor)]
    lengths = {len(ids) - 1 for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]}
    assert lengths == {90} and len(set(texts)) == 4


def test_what_cannot_be_run_is_refused():
    with pytest.raises(SurgeryR1Error, match="prompt_tokens = 10"):
        Work(prompt_tokens=10).of("rft").check()
    with pytest.raises(SurgeryR1Error, match="micro_batch = 24 cannot hold whole groups"):
        Work(questions=5, micro_batch=24).of("rft").check()
    with pytest.raises(SurgeryR1Error, match="frames = 0"):
        Work(frames=0).of("rft").check()
    with pytest.raises(SurgeryR1Error, match="a whole step of 'sft'; give --whole with rft"):
        bench("sft", Work(whole=True))
    with pytest.raises(SurgeryR1Error, match="unknown shape 'huge'"):
        Work(shape="huge").of("rft").check()


def test_rollouts_are_counted_without_their_repeats():
    """Two frames of 30 tokens with two questions of 80, three replies of 5 to each, by hand."""
    work = Work(image_tokens=30, prompt_tokens=80, completion_tokens=5, frames=2, questions=2)
    plain, ours = (operations.rollout_counts(work, shared, copies=3) for shared in (False, True))
    assert plain == {"tokens": 12 * 114, "pairs": 12 * 114 * 115 // 2, "heads": 60, "images": 12}
    # A frame once, 79 tokens of each question once, and of each reply the question's last token and four of its own.
    assert ours["tokens"] == 2 * 30 + 4 * 79 + 12 * 5 and ours["images"] == 2 and ours["heads"] == 60
    frame, question = 30 * 31 // 2, sum(range(31, 110))
    assert ours["pairs"] == 2 * frame + 4 * question + 12 * sum(range(110, 115))


@pytest.mark.slow
def test_bench_of_a_whole_step(tmp_path, capsys, monkeypatch):
    """Stock TRL and ours sample the same completions, and the record says what both took."""
    monkeypatch.undo()  # processes talk over local sockets
    out = tmp_path / "bench.json"
    sizes = ["--completion-tokens", "6", "--frames", "2", "--generations", "4", "--micro-batch", "8"]
    assert main(["bench", "rft", "--whole", "--shape", "tiny", *SMALL, *sizes, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["texts"] == 8 and record["texts_that_differ"] == 0
    for key in ("plain", "ours"):
        parts = record[key]
        # Completions are no replay: they take time, and so does the optimiser.
        assert parts["generation"] > 0 and parts["rewards"] > 0 and parts["optimiser"] > 0
        assert parts["compared"] == parts["step"] > parts["generation"] + parts["backward"]
        assert all(pair[f"{key}_cpu_s"] > 0 for pair in record["pairs"])
    assert record["operations"]["plain"] / record["operations"]["ours"] == record["ratio_predicted"] > 1
    assert record["ratio_cpu_median"] > 0 and len(record["load"]["before"]) == len(record["load"]["after"]) == 3
    assert "CPU seconds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "rft", "predict"])
def test_bench(name, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # processes talk over local sockets
    out = tmp_path / "bench.json"
    assert main(["bench", name, *SMALL, "--completion-tokens", "8", "--questions", "2", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["name"] == name and len(record["pairs"]) == 2
    assert record["ratio_min"] <= record["ratio_median"] <= record["ratio_max"]
    assert record["ratio_predicted"] > 1
    assert record["tokens"]["plain"] > record["tokens"]["ours"]
    assert all(value > 0 for value in record["peak_memory_bytes"].values())
    if name == "predict":
        assert record["texts_that_differ"] == 0
    else:
        assert record["max_abs_diff"] < 1e-4
        assert record["plain"]["backward"] > 0 and record["ours"]["vision"] > 0
    assert "counted operations say" in capsys.readouterr().out
