"""The rival that classifies and regresses: both designs, from a config to scores, and every refusal."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import iou
from surgery_r1.models.specialist.encoders import Encoder, Seen, collated, tower_encoder
from surgery_r1.models.specialist.folder import SpecialistInfo, specialist_folder
from surgery_r1.models.specialist.fusion import TokenGate, load_trunk
from surgery_r1.models.specialist.network import build_specialist, corners, giou
from surgery_r1.models.specialist.words import Words, vocabulary
from surgery_r1.train.specialist import stage
from surgery_r1.train.specialist.config import SpecialistConfig, load_specialist_config, shipped_specialists
from surgery_r1.train.specialist.visits import Visits, batch_of

STEPS = 30
SMALL = ["max_steps=30", "eval_every=15", "width=32", "heads=2", "layers=1", "warmup_steps=2", "frames_per_step=8"]


def config(*changes: str) -> SpecialistConfig:
    return load_specialist_config("specialist", [f"specialist.{one}" for one in (*SMALL, *changes)])


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fails(capsys, code: int, match: str) -> None:
    error = capsys.readouterr().err
    assert code == 2 and re.search(match, error), error


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("specialist") / "run"
    stage.train_specialist(config(), dataset, out, quiet=True)
    return out


# ---------------------------------------------------------------------------------------------------------- parts


def test_boxes():
    a, b = torch.tensor([[0.0, 0.0, 0.4, 0.5], [0.1, 0.1, 0.2, 0.2]]), torch.tensor([[0.2, 0.0, 0.6, 0.5]] * 2)
    assert giou(a, a).tolist() == pytest.approx([1, 1])
    assert giou(a, b)[0].item() == pytest.approx(iou((0, 0, 0.4, 0.5), (0.2, 0, 0.6, 0.5)))
    # Apart: the worse, the more of the hull neither fills.
    assert -1 < giou(a, b + 0.3)[1].item() < giou(a, b + 0.1)[1].item() < 0.3
    assert corners(torch.tensor([[0.5, 0.5, 0.2, 0.4]]))[0].tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_words_that_training_does_not_have():
    words = Words(vocabulary(["Where is large_needle_driver?", "Where is it?"]), 5)
    assert len(words) == 8 and words("where IS it") == [3, 2, *words("it")[:1], 0, 0]
    assert words.unknown("Where is the stapler?") == ["the", "stapler"] and words("stapler") == [1, 0, 0, 0, 0]
    assert len(words("is " * 40)) == 5


def test_frames_of_different_size_do_not_disturb_each_other():
    """What fills up a short frame is not looked at."""
    torch.manual_seed(0)
    info = SpecialistInfo("features", ("a", "b"), ("is",), 5, "x", "", 6, 8, 1, 2, 0.0, "")
    model = build_specialist(info, 3).eval()
    short, long = (Seen(torch.randn(n, 6), torch.rand(n, 2)) for n in (4, 9))
    words = torch.tensor([[2, 1, 0, 0, 0]])
    alone = model(**collated([short]), frames=torch.tensor([0]), words=words)
    beside = model(**collated([long, short]), frames=torch.tensor([1]), words=words)
    assert torch.allclose(alone["boxes"], beside["boxes"], atol=1e-6)
    assert torch.allclose(alone["answers"], beside["answers"], atol=1e-6)


def test_visits_show_every_frame_once_an_epoch_and_labels_follow_mirrors(dataset):
    encoder = tower_encoder("tiny")
    samples = [s for s in dataset.split("train") if s.kind == "location"]
    frames = {s.frame_id: s for s in samples}
    words = Words(vocabulary(s.question for s in samples), 25)
    how = {"flips": ("horizontal",), "seed": 3, "count": 3 * len(frames)}
    visits = Visits(dataset, samples, encoder, words, dataset.classes, **how)
    again = Visits(dataset, samples, encoder, words, dataset.classes, **how)
    sides = set()
    for number in range(len(visits)):
        visit = visits[number]
        assert visit["words"] == again[number]["words"] and visit["boxes"] == again[number]["boxes"]
        for answer, (x1, _, x2, _) in zip(visit["answers"], visit["boxes"], strict=True):
            # The drawn scenes' own rule: what counts is the centre.
            side = "left" if (x1 + x2) / 2 < 0.5 else "right"
            assert dataset.classes[answer].startswith(side)
            sides.add(side)
    assert sides == {"left", "right"}
    batch = batch_of([visits[0], visits[1]])
    assert batch["frames"].tolist() == [0] * len(visits[0]["words"]) + [1] * len(visits[1]["words"])
    first = [str(visits[i]["frame"].features.sum().item()) for i in range(len(frames))]
    assert len(set(first)) == len(frames), "an epoch shows a frame once"


# ------------------------------------------------------------------------------------------------------- training


def test_a_run_learns_and_leaves_what_other_stages_leave(run):
    records = lines(run / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    dev = [record for record in records if "dev/joint" in record]
    assert [record["step"] for record in dev] == [15, STEPS] and dev[0]["dev/parse_failure_rate"] == 0
    result = json.loads((run / "result.json").read_text())
    assert result["best_step"] == max(dev, key=lambda record: record["dev/joint"])["step"]
    assert json.loads((run / "run.json").read_text())["stage"] == "specialist"
    info = SpecialistInfo.read(run / "best")
    assert info.step == result["best_step"] and "bipolar" in info.words and len(info.classes) >= 10
    assert specialist_folder(run) == specialist_folder(run / "best") == run / "best"


def test_predictions_are_scored_and_reported_like_any_other(run, dataset, dataset_folder, tmp_path, capsys):
    out, data = tmp_path / "p.jsonl", ["--data", str(dataset_folder)]
    args = ["predict", "--model", str(run), *data, "--split", "val"]
    assert main([*args, "--out", str(out)]) == 0
    found = lines(out)
    assert [line["id"] for line in found] == [s.id for s in dataset.split("val")]
    assert all(line["answer"] in dataset.classes and len(line["box_px"]) == 4 for line in found)
    assert {line["stage"] for line in found} == {"specialist"} and not {"text", "reasoning"} & found[0].keys()
    # A checkpoint is a model too, and the batch changes nothing.
    last = run / "checkpoints" / f"checkpoint-{STEPS}"
    args[2] = str(last)
    assert main([*args, "--out", str(tmp_path / "q.jsonl")]) == 0
    assert main([*args, "--out", str(tmp_path / "r.jsonl"), "--batch-size", "5"]) == 0
    same = zip(lines(tmp_path / "q.jsonl"), lines(tmp_path / "r.jsonl"), strict=True)
    assert all(a["answer"] == b["answer"] and a["box_px"] == pytest.approx(b["box_px"], abs=0.02) for a, b in same)
    scores = tmp_path / "scores"
    assert main(["score", str(out), *data, "--split", "val", "--out", str(scores)]) == 0
    metrics = json.loads((scores / "metrics.json").read_text())
    assert metrics["predicted_with"]["engine"] == "specialist" and metrics["parse_failure_rate"] == 0
    assert metrics["agreement"]["n"] == 0 and metrics["rationale_right"] is None
    assert main(["report", str(scores), *data, "--out", str(tmp_path / "r.html")]) == 0
    capsys.readouterr()
    code = main(["autopsy", str(out), *data, "--out", str(tmp_path / "a")])
    fails(capsys, code, "p.jsonl: no prediction holds a rationale")


def test_where_a_model_that_writes_is_needed(run, dataset, dataset_folder, tmp_path, capsys):
    frame = str(dataset.image_path(dataset.split("val")[0]))
    for command in (
        ["ask", frame, "Where is suction located?", "--model", str(run)],
        ["export", str(run), str(tmp_path / "e")],
    ):
        fails(capsys, main(command), "a specialist writes no text")
    args = ["predict", "--model", str(run), "--data", str(dataset_folder), "--split", "val", "--engine", "vllm"]
    fails(capsys, main([*args, "--out", str(tmp_path / "p.jsonl")]), "--engine vllm with a specialist")


def test_a_killed_run_goes_on_as_if_nothing_had_been(run, dataset, tmp_path, monkeypatch):
    out, step = tmp_path / "run", stage.SpecialistTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 20:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(stage.SpecialistTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train_specialist(config(), dataset, out, quiet=True)
    monkeypatch.setattr(stage.SpecialistTrainer, "training_step", step)
    with pytest.raises(SurgeryR1Error, match="already holds a run"):
        stage.train_specialist(config(), dataset, out, quiet=True)
    with pytest.raises(SurgeryR1Error, match=r"specialist\.width was 32, now 64"):
        stage.train_specialist(config("width=64"), dataset, out, resume=True, quiet=True)
    stage.train_specialist(config(), dataset, out, resume=True, quiet=True)
    kept = ("step", "loss", "dev/joint", "dev/acc")
    ours, theirs = ([{k: r.get(k) for k in kept} for r in lines(f / "metrics.jsonl")] for f in (out, run))
    assert ours == theirs
    assert (out / "best/model.safetensors").read_bytes() == (run / "best/model.safetensors").read_bytes()


def test_what_cannot_be_trained_or_predicted_is_told(run, dataset, dataset_folder, tmp_path, capsys):
    assert shipped_specialists() == ["specialist"]
    for changes, match in (
        (("heads=3",), "heads = 3 does not divide"),
        (("design=fusion",), "(?s)trunk is empty.*encoder = 'tiny'"),
        (('flips=["sideways"]',), "flips holds 'sideways'"),
        (("trunk=x",), "goes with specialist.design = 'fusion'"),
    ):
        with pytest.raises(SurgeryR1Error, match=match):
            config(*changes)
    code = main(
        ["train", "specialist", "--config", "specialist", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    fails(capsys, code, "not a dataset folder")
    folder = tmp_path / "moved"
    shutil.copytree(run / "best", folder)
    text = (folder / "specialist.json").read_text()
    args = ["predict", "--model", str(folder), "--data", str(dataset_folder), "--split", "val"]
    args += ["--out", str(tmp_path / "p.jsonl")]
    (folder / "specialist.json").write_text(re.sub(r'("encoder_sha256": ")\w+', r"\1other", text))
    fails(capsys, main(args), "its encoder tiny has other weights now")
    (folder / "specialist.json").write_text(text.replace('"classes"', '"klasses"'))
    fails(capsys, main(args), "does not describe a specialist: .*klasses")
    (folder / "specialist.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"torn")
    fails(capsys, main(args), "the weights cannot be read")


# --------------------------------------------------------------------------------------------------------- fusion


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A ResNet and a ViT as folders; small and random, to hold the plumbing and no figure."""
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbones")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(folder / "resnet")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=16)).save_pretrained(folder / "vit")
    return folder


def fusion(backbones, *changes: str) -> SpecialistConfig:
    own = ["design=fusion", f"encoder={backbones}/resnet", f"trunk={backbones}/vit", "width=16", "max_steps=4"]
    return config(*own, "eval_every=2", *changes)


def test_the_gate_mixes_token_by_token():
    torch.manual_seed(0)
    gate, image, text = TokenGate(6), torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    out, order = gate(image, text), torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(gate(image[:, order], text[:, order]), out[:, order], atol=1e-6)
    changed = image.clone()
    changed[:, 2] += 1
    moved = (gate(changed, text) - out).abs().sum(-1) > 0
    assert moved.tolist() == [[False, False, True, False, False]] * 2
    # One number a token, between both sides.
    a, b = gate.image(image).tanh(), gate.text(text).tanh()
    share = (out - b) / (a - b)
    assert (share > 0).all() and (share < 1).all() and torch.allclose(share, share[..., :1].expand_as(share), atol=1e-3)


def test_fusion_trains_all_but_the_frozen_encoder_and_predicts(backbones, dataset, dataset_folder, tmp_path):
    before = load_trunk(backbones / "vit", 16)
    result = stage.train_specialist(fusion(backbones), dataset, tmp_path / "run", quiet=True)
    info = SpecialistInfo.read(result.best)
    assert (info.channels, info.max_words, info.trunk["model_type"]) == (8, 25, "vit")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "run/checkpoints/checkpoint-4/model.safetensors")
    name = "layers.0.mlp.fc1.weight"
    ours = next(value for key, value in state.items() if key.endswith(f"trunk.{name}"))
    assert ours.shape == before.state_dict()[name].shape and not torch.equal(ours, before.state_dict()[name])
    assert torch.allclose(ours, before.state_dict()[name], atol=0.05), "it began with the pretrained weights"
    assert not [key for key in state if "embedder" in key or "patch" in key or "pooler" in key]
    out = tmp_path / "p.jsonl"
    args = ["--data", str(dataset_folder), "--split", "val", "--out", str(out), "--limit", "6"]
    assert main(["predict", "--model", str(tmp_path / "run"), *args]) == 0 and len(lines(out)) == 6


def test_fusion_takes_no_random_backbone(backbones, dataset, tmp_path):
    for changes, match in (
        ((f"trunk={backbones}/none",), "specialist.trunk: no model folder"),
        ((f"trunk={backbones}/resnet",), "specialist.trunk cannot be loaded"),
        ((f"encoder={backbones}/vit",), "specialist.backbone cannot be loaded .*a 'vit' model"),
        (("width=32",), "specialist.width = 32, but the trunk is 16 wide"),
    ):
        with pytest.raises(SurgeryR1Error, match=match):
            stage.train_specialist(fusion(backbones, *changes), dataset, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_an_encoder_reads_a_frame_once(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "a.png")
    read = []
    encoder = Encoder("x", "", 3, lambda image: read.append(image.size) or torch.zeros(2, 4, 3))
    assert encoder(tmp_path / "a.png") is encoder(tmp_path / "a.png") and len(read) == 1
    seen = encoder(tmp_path / "a.png", "both")
    assert len(read) == 2 and seen.features.shape == (8, 3)
    assert seen.places[0].tolist() == [0.125, 0.25] and seen.places[-1].tolist() == [0.875, 0.75]
