"""Rewards of one's own: found by ``path.py:function``, tried out before training, refused with their path."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import small

from surgery_r1.codec import render
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.rewards import Mixture, trl_reward
from surgery_r1.rewards.custom import _example, load_reward, reward_files
from surgery_r1.train.options import Permissions
from surgery_r1.train.rft import rft_arguments

EXAMPLE = Path(__file__).parents[1] / "examples/custom_reward.py"


def reward(folder: Path, body: str, name: str = "mine") -> str:
    path = folder / f"{name}.py"
    path.write_text(body)
    return f"{path}:reward"


def test_the_example():
    name = f"{EXAMPLE}:names_the_subject"
    truth = _example("cot")
    named, silent = (render(text, "left-top", (1, 2, 30, 40)) for text in ("the bipolar_forceps is seen", "it is seen"))
    paid = load_reward(name)
    assert paid(named, truth) == 1.0 and paid(silent, truth) == 0.0 and paid(named, _example("visual_qa")) is None
    score = trl_reward(name)
    assert score.__name__ == "names_the_subject"
    assert score([named, silent], [truth.to_json()] * 2) == [1.0, 0.0]
    total, parts = Mixture({"answer": 1.0, name: 3.0}).total(silent, truth)
    assert total == 0.25 and parts == {"answer": 1.0, name: 0.0}
    assert set(reward_files(["answer", name])) == {name}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import nothing_of_the_kind", r"mine\.py: cannot be imported \(ModuleNotFoundError"),
        ("def reward(:", r"mine\.py: cannot be imported \(SyntaxError"),
        ("def other(text, truth): return 1", r"mine\.py: no function 'reward' here"),
        ("\ndef reward(text): return 1", r"mine\.py:2: reward cannot be called with \(text, truth\)"),
        ("def reward(text, truth, weight): return 1", r"mine\.py:1: reward cannot be called with"),
        ("def reward(text, truth): return float('nan')", r"mine\.py: reward returned nan for the reply '<think>"),
        ("def reward(text, truth): return 1.5", r"returned 1\.5 .*number in \[0, 1\]"),
        ("def reward(text, truth): return -0.1 if not text else 1", r"returned -0\.1 for the reply ''"),
        ("def reward(text, truth): return 'high'", r"returned 'high'"),
        ("def reward(text, truth): return None if not text else 1", r"None for some replies to a question"),
        ("def reward(text, truth): return 1 / len(text)", r"failed on an example \(ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_told_before_training_starts(tmp_path, body, message):
    name = reward(tmp_path, body)
    with pytest.raises(SurgeryR1Error, match=message):
        rft_arguments(small(rft_rewards={"answer": 1.0, name: 1.0}), tmp_path, Permissions())


def test_a_missing_file(tmp_path):
    with pytest.raises(SurgeryR1Error, match=r"none\.py: no such file with a reward"):
        load_reward(f"{tmp_path / 'none.py'}:reward")


def test_each_value_is_checked(tmp_path):
    paid = load_reward(reward(tmp_path, "def reward(text, truth): return 2 if text == 'late' else 1"))
    truth = _example("cot")
    assert paid("early", truth) == 1.0
    with pytest.raises(SurgeryR1Error, match="returned 2 for the reply 'late'"):
        paid("late", truth)


def test_it_trains(dataset, tmp_path):
    import json

    from surgery_r1.train.stage import train

    name = reward(tmp_path, "def reward(text, truth): return len(text) % 10 / 10", "length")
    config = small(rft_max_steps=2, rft_rewards={name: 1.0}, eval_dev_samples=1)
    train("rft", config, dataset, tmp_path / "run", quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("rewards/reward/mean" in record for record in logged)
    assert json.loads((tmp_path / "run/run.json").read_text())["reward_files"].keys() == {name}
