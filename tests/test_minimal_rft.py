"""``examples/minimal_rft.py`` computes what TRL's GRPOTrainer computes, needs none of it, and stays short."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small

import surgery_r1
from surgery_r1._util.offline import stay_offline
from surgery_r1.codec import render, to_model
from surgery_r1.models import from_pretrained
from surgery_r1.models.sharing import attention
from surgery_r1.rewards import Mixture, Truth, trl_rewards
from surgery_r1.train.config import load_config
from surgery_r1.train.datasets import rft_dataset
from surgery_r1.train.options import Permissions
from surgery_r1.train.rft import rft_arguments
from surgery_r1.train.stage import train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import minimal_rft  # noqa: E402

#: What the file must do without: TRL, and all of this package that is built on it.
FORBIDDEN = ("trl", *(f"surgery_r1.train.{name}" for name in ("sft", "rft", "sharing")))
G = 4


def replies(truth: Truth) -> list[str]:
    """A right one, one with a wrong answer, one with a shifted box, one without its form."""
    answer, box = truth.accepted[0]
    right, near = (to_model(b, truth.box_space, truth.view) for b in (box, [value + 12 for value in box]))
    return [
        render(f"it is {answer}", answer, right),
        render("no", "something else", right),
        render("it may be there", answer, near),
        f"<answer>{answer}</answer>",
    ]


@pytest.fixture(scope="module")
def stock(dataset, tmp_path_factory):
    """TRL's own trainer on the tiny base, and a batch of fixed completions as it prepares them."""
    from trl import GRPOTrainer

    stay_offline(False)
    config = small(rft_prompts=3, rft_generations=G)
    arguments, _ = rft_arguments(config, tmp_path_factory.mktemp("stock"), Permissions())
    bundle = from_pretrained("tiny", dtype="float32", device="cpu")
    bundle.model.model.visual.requires_grad_(False)
    rows = rft_dataset(dataset, bundle.processor, bundle.info.box_space, flips=config.rft.flips)
    kinds = [Truth.from_json(truth).kind for truth in rows.with_format(None)["truth"]]
    # A reward that does not apply to all (spatial: to questions of location), three frames, one of them mirrored.
    chosen = [kinds.index("location"), kinds.index("state"), len(kinds) - 1]
    questions = [rows[i] for i in chosen]
    truths = [Truth.from_json(question["truth"]) for question in questions]
    tokenizer = bundle.tokenizer
    completions = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * (i != 2)
        for truth in truths
        for i, text in enumerate(replies(truth))
    ]
    trainer = GRPOTrainer(
        model=bundle.model,
        args=arguments,
        reward_funcs=[*trl_rewards(config.rft.rewards)],
        train_dataset=rows,
        processing_class=bundle.processor,
    )
    trainer._generate_single_turn = lambda *_, **__: (completions, None)
    trainer.current_gradient_accumulation_steps = 1
    bundle.model.train()
    repeated = [question for question in questions for _ in range(G)]
    return trainer, bundle, questions, completions, repeated, trainer._generate_and_score_completions(repeated)


def ours(stock) -> tuple[minimal_rft.Batch, torch.Tensor]:
    """The same batch as the file makes it, and its rewards."""
    _, bundle, questions, completions, _, _ = stock
    prompts, images = minimal_rft.encode_prompts(questions, bundle.processor)
    texts = bundle.processor.batch_decode(completions, skip_special_tokens=True)
    truths = [Truth.from_json(question["truth"]) for question in questions]
    rewards = minimal_rft.score(texts, truths, list(load_config("tiny").rft.rewards))
    return minimal_rft.Batch([p for p in prompts for _ in range(G)], completions, images), rewards


def weights_of_rewards() -> torch.Tensor:
    return torch.tensor(Mixture(load_config("tiny").rft.rewards).weights_normalised)


def test_prompts_are_those_of_trl(stock):
    batch, _ = ours(stock)
    theirs = stock[-1]
    ids = [row[seen.bool()].tolist() for row, seen in zip(theirs["prompt_ids"], theirs["prompt_mask"], strict=True)]
    assert [list(prompt.ids) for prompt in batch.prompts] == ids
    patches = [batch.images[key].patches for prompt in batch.prompts for key in prompt.images]
    assert torch.cat(patches).equal(theirs["pixel_values"]) and len(batch.images) > 1


def test_advantages_are_those_of_trl(stock):
    _, rewards = ours(stock)
    # The rewards tell completions of a group apart, and one of them does not apply everywhere.
    assert rewards.isnan().any() and rewards[0].std(0).min() > 0
    advantages = minimal_rft.advantages(rewards, weights_of_rewards())
    torch.testing.assert_close(advantages.flatten(), stock[-1]["advantages"], atol=1e-5, rtol=0)
    assert advantages.abs().max() > 1


def test_advantages_where_rewards_do_not_apply(stock, monkeypatch):
    """One to a question, all of them to another; and a reward that is the same for a whole group."""
    trainer, _, _, _, repeated, _ = stock
    rewards = torch.rand(3, G, len(load_config("tiny").rft.rewards), generator=torch.Generator().manual_seed(1))
    rewards[0, :, 2], rewards[1], rewards[2, :, 0] = torch.nan, torch.nan, 0.5
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: rewards.flatten(0, 1))
    theirs = trainer._generate_and_score_completions(repeated)["advantages"]
    advantages = minimal_rft.advantages(rewards, weights_of_rewards())
    torch.testing.assert_close(advantages.flatten(), theirs, atol=1e-5, rtol=0)
    assert not advantages[1].any() and advantages[0].abs().max() > 0.5


def plain_log_probs(trainer, prepared) -> torch.Tensor:
    """Log-probabilities of the completions, (B, C), computed row by row by TRL."""
    ids = torch.cat([prepared["prompt_ids"], prepared["completion_ids"]], 1)
    seen = torch.cat([prepared["prompt_mask"], prepared["completion_mask"]], 1)
    images = {name: prepared[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
    keep = prepared["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, keep, **images)[0]


@pytest.mark.parametrize("moved", [0.0, 0.4])
def test_loss_and_gradients_are_those_of_trl(stock, moved):
    """Of the model that sampled, and of one that has moved away so far that tokens are clipped."""
    trainer, bundle, _, _, _, prepared = stock
    model = bundle.model
    batch, rewards = ours(stock)
    given = dict(prepared)
    if moved:
        with torch.no_grad():
            now = plain_log_probs(trainer, prepared)
        noise = torch.rand(now.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
        given["old_per_token_logps"] = now + moved * noise
    model.zero_grad()
    expected = trainer._compute_loss(model, given)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    text = model.config.get_text_config()
    before = text._attn_implementation
    # TRL's rows were computed plainly.
    assert before != attention.ATTENTION and attention.enable(model)
    try:
        model.zero_grad()
        log_probs, mask = minimal_rft.completion_log_probs(model, batch)
        old = given.get("old_per_token_logps", log_probs.detach())
        advantages = minimal_rft.advantages(rewards, weights_of_rewards()).flatten()
        loss = minimal_rft.clipped_loss(log_probs, old, advantages, mask)
        loss.backward()
    finally:
        text._attn_implementation = before
    assert mask.equal(prepared["completion_mask"].float())
    if moved:
        ratio = torch.exp(log_probs - old)
        stopped = ((ratio > 1.2) & (advantages[:, None] > 0)) | ((ratio < 0.8) & (advantages[:, None] < 0))
        assert 0.1 < (stopped & mask.bool()).sum() / mask.sum() < 0.9
    assert abs(expected.item()) > 1e-3
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys() and not any(".visual." in name for name in own)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        assert (own[name] - gradient).abs().max() < 1e-5 * largest, name


def test_steps_are_those_of_trl(dataset, tmp_path, monkeypatch):
    """On the same completions four steps leave the same weights: question order, warm-up, clipping, AdamW."""
    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer

    recorded = []
    stock = SharedFrameGRPOTrainer._generate_single_turn

    def record(self, prompt_ids, *args, **kwargs):
        completions, _ = stock(self, prompt_ids, *args, **kwargs)
        recorded.append((prompt_ids, completions))
        return completions, None

    monkeypatch.setattr(SharedFrameGRPOTrainer, "_generate_single_turn", record)
    changes = {"rft_max_steps": 4, "rft_eval_every": 4, "rft_learning_rate": 1e-3, "rft_warmup_steps": 3}
    config = small(eval_choose="last", **changes)
    train("rft", config, dataset, tmp_path / "theirs", quiet=True)
    rest = iter(recorded)

    def replay(model, processor, prompts, *_):
        asked, completions = next(rest)
        assert [list(prompt.ids) for prompt in prompts] == asked
        return completions

    monkeypatch.setattr(minimal_rft, "sample_completions", replay)
    settings = minimal_rft.Settings(
        steps=4, prompts=2, generations=4, learning_rate=1e-3, dev_samples=4, dev_batch_size=4, dev_max_new_tokens=24
    )
    result = minimal_rft.train(dataset.root, "tiny", tmp_path / "ours", settings)
    assert next(rest, None) is None and len(recorded) == 4
    models = ("tiny", tmp_path / "theirs", tmp_path / "ours")
    start, theirs, own = (from_pretrained(where, device="cpu").model.state_dict() for where in models)
    moved = max((theirs[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-3
    assert max((theirs[name] - own[name]).abs().max() for name in start) < 0.02 * moved
    lines = [json.loads(line) for line in (tmp_path / "theirs" / "metrics.jsonl").read_text().splitlines()]
    dev = {line["step"]: line for line in lines if "dev/acc" in line}
    for step, name in ((0, "start"), (4, "dev")):
        assert result[name] == pytest.approx({metric: dev[step][f"dev/{metric}"] for metric in result[name]})


def test_defaults_are_those_of_the_tiny_config():
    config, settings = load_config("tiny"), minimal_rft.Settings()
    rft = config.rft
    assert (settings.steps, settings.prompts, settings.generations) == (rft.max_steps, rft.prompts, rft.generations)
    assert (settings.learning_rate, settings.warmup_steps) == (rft.learning_rate, rft.warmup_steps)
    assert (settings.max_completion, 1.0) == (rft.max_completion, rft.temperature)
    assert (settings.rewards, settings.flips, settings.seed) == (rft.rewards, rft.flips, config.seed)
    assert settings.tangled == rft.oversample.tangled
    dev = (settings.dev_samples, settings.dev_batch_size, settings.dev_max_new_tokens)
    assert dev == (config.eval.dev_samples, config.eval.batch_size, config.eval.max_new_tokens)


def test_completions_are_drawn_from_what_is_trained(dataset):
    """Beginnings come as often as their log-probabilities say; what follows an end token is cut."""
    bundle = from_pretrained("tiny", dtype="float32", device="cpu")
    model, processor, end = bundle.model, bundle.processor, bundle.tokenizer.eos_token_id
    assert attention.enable(model)
    rows = rft_dataset(dataset, processor, bundle.info.box_space)
    prompts, images = minimal_rft.encode_prompts([rows[0], rows[50]], processor)
    count, length = 400, 4
    repeated = [prompt for prompt in prompts for _ in range(count)]
    torch.manual_seed(0)
    completions = minimal_rft.sample_completions(model, processor, repeated, images, 48)
    assert all(end not in completion[:-1] and 0 < len(completion) <= 48 for completion in completions)
    assert any(completion[-1] == end for completion in completions)
    with torch.no_grad():
        log_probs, _ = minimal_rft.completion_log_probs(model, minimal_rft.Batch(repeated, completions, images))
    compared = 0
    for first in (0, count):
        seen = [tuple(completion[:length]) for completion in completions[first : first + count]]
        probability = {beginning: log_probs[first + i, :length].sum().exp() for i, beginning in enumerate(seen)}
        for beginning, p in probability.items():
            if p > 0.05:
                assert abs(seen.count(beginning) / count - p) < 4 * (p * (1 - p) / count) ** 0.5, beginning
                compared += 1
    assert compared > 3


def test_what_cannot_be_run_is_refused(dataset, tmp_path):
    with pytest.raises(SystemExit, match="do not fill a step of 1000"):
        minimal_rft.train(dataset.root, "tiny", tmp_path / "run", minimal_rft.Settings(prompts=1000))
    assert not (tmp_path / "run").exists()
    command = ["--data", str(dataset.root), "--model", "tiny", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        minimal_rft.main(command)


def test_it_is_short_and_imports_no_trl():
    source = (EXAMPLES / "minimal_rft.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert "surgery_r1.rewards" in imported
    assert not [name for name in imported if any(name == f or name.startswith(f"{f}.") for f in FORBIDDEN)]


#: Runs the file's command where TRL cannot be imported and no connection can be made.
ALONE = """
import socket, sys
def refuse(*_): raise AssertionError("reached for the network")
socket.socket.connect = socket.getaddrinfo = refuse
for name in FORBIDDEN: sys.modules[name] = None
import minimal_rft
minimal_rft.main(sys.argv[1:])
"""


def test_a_run_without_trl(dataset, tmp_path):
    command = [sys.executable, "-c", ALONE.replace("FORBIDDEN", repr(FORBIDDEN))]
    command += ["--data", str(dataset.root), "--model", "tiny", "--out", str(tmp_path / "run"), "--steps", "2"]
    command += ["--prompts", "4", "--generations", "4", "--lr", "1e-3", "--seed", "5", "--dev-samples", "4"]
    paths = [str(EXAMPLES), str(Path(surgery_r1.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["seed"] == 5 and result["settings"]["learning_rate"] == 1e-3
    assert result["dataset_sha256"] == dataset.hash and [line["step"] for line in result["steps"]] == [1, 2]
    assert all(0 <= value <= 1 for dev in ("start", "dev") for value in result[dev].values())
    trained = from_pretrained(tmp_path / "run", device="cpu")
    assert (trained.info.stage, trained.info.step, trained.info.dataset_sha256) == ("rft", 2, dataset.hash)
    start, end = from_pretrained("tiny", device="cpu").model.state_dict(), trained.model.state_dict()
    moved = {name for name in start if not start[name].equal(end[name])}
    assert moved and not any("visual." in name for name in moved)
