"""What ``import surgery_r1`` gives: light at first, complete when used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import surgery_r1
from surgery_r1.codec import render, to_model
from surgery_r1.errors import SurgeryR1Error

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "numpy", "PIL")


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, surgery_r1\n"
        "names = [name for name in surgery_r1.__all__ if name not in ('Dataset', 'open_dataset', 'score')]\n"
        f"first = set({HEAVY}) & set(sys.modules)\n"
        "for name in names: getattr(surgery_r1, name)\n"
        f"print(sorted(first), sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_names():
    assert set(surgery_r1.__all__) == set(dir(surgery_r1))
    assert surgery_r1.rewards.REWARDS["answer"] and surgery_r1.SurgeryR1Error is SurgeryR1Error
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        surgery_r1.fly  # noqa: B018


def test_open_ask_and_score(dataset_folder, tmp_path):
    dataset = surgery_r1.open_dataset(dataset_folder)
    samples = dataset.split("val")
    model = surgery_r1.load("tiny")
    replies = model.ask_many([(dataset.image_path(s), s.question) for s in samples[:3]], max_new_tokens=4)
    assert [reply.question for reply in replies] == [s.question for s in samples[:3]]

    right = [{"id": s.id, "answer": s.answer, "box_px": list(s.box_px)} for s in samples]
    metrics = surgery_r1.score(right, dataset, "val")
    assert metrics["acc"] == metrics["miou"] == 1.0 and metrics["n"] == len(samples)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in right[1:]))
    assert surgery_r1.score(path, dataset, "val")["acc"] == pytest.approx(1 - 1 / len(samples))
    assert surgery_r1.score(path, dataset_folder, "val")["missing"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"], "scoring from Python writes nothing"


def test_texts_are_scored_too(dataset):
    samples = dataset.split("val")
    from surgery_r1.codec import View

    texts = []
    for s in samples:
        view = View(s.width, s.height, s.width, s.height)
        texts.append(render("so", s.answer, to_model(s.box_px, "norm1000", view)))
    lines = [{"id": s.id, "text": text} for s, text in zip(samples, texts, strict=True)]
    metrics = surgery_r1.score(lines, dataset, "val", box_space="norm1000")
    assert metrics["acc"] == 1.0 and metrics["miou"] > 0.95
    with pytest.raises(SurgeryR1Error, match=r"^predictions:2: id 'nobody' is not in split"):
        surgery_r1.score([lines[0], {"id": "nobody", "text": ""}], dataset, "val")
