"""The command line: help without torch, the list of flags, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from surgery_r1 import __version__
from surgery_r1.cli import main
from surgery_r1.data import recipe
from surgery_r1.models.load import weights_sha256
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train.config import shipped_configs

COMMANDS = (
    *((), ("demo",), ("data",), ("data", "make-scenes"), ("data", "check"), ("data", "build"), ("data", "export")),
    *(
        ("train",),
        ("train", "sft"),
        ("train", "rft"),
        ("predict",),
        ("score",),
        ("report",),
        ("autopsy",),
        ("ask",),
        ("serve",),
        ("export",),
        ("bench",),
        ("gpu",),
    ),
)
FLAGS = Path(__file__).with_name("flags.txt")
FULL = "No space left on device"


def help_of(*command: str) -> str:
    """Help text, wide enough that no line wraps."""
    environment = {**os.environ, "COLUMNS": "1000", "NO_COLOR": "1"}
    code = (
        "import sys\nfrom surgery_r1.cli import main\n"
        f"try: main([*{list(command)}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(capfd, *args) -> tuple[int, str]:
    """Exit status and standard error of a command that fails."""
    # Handlers of transformers write to the standard error of an earlier test, which is closed.
    logging.raiseExceptions = False
    capfd.readouterr()
    status = main([str(arg) for arg in args])
    return status, capfd.readouterr().err


def fails(capfd, *args, match: str, status: int = 2) -> None:
    """Fails with one line that matches, without a traceback, and with one under ``--debug``."""
    got, err = run(capfd, *args)
    ours = [line for line in err.splitlines() if line.startswith("surgery-r1: ")]
    assert got == status and len(ours) == 1 and err.rstrip().endswith(ours[0]), err
    assert "Traceback" not in err and re.search(match, ours[0]), err
    got, err = run(capfd, *args, "--debug")
    assert got == status and "Traceback" in err and re.search(match, err)


# ---------------------------------------------------------------------------------------------------------- help


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    """Help of every command, each from a process of its own, which asserts that nothing heavy was imported."""
    return {command: help_of(*command) for command in COMMANDS}


def test_every_command_has_help_without_torch(helps):
    found = {()}
    for command, text in helps.items():
        assert f"usage: surgery-r1 {' '.join(command)}".strip() in text
        # A choice of values looks alike in the first line.
        listed = "subcommands" in text and re.search(r"^usage: [^{\n]*\{([a-z,-]+)\}", text)
        found |= {(*command, name) for name in listed[1].split(",")} if listed else set()
    assert found == set(COMMANDS), "COMMANDS must list every command"


def test_flags_are_those_of_the_snapshot(helps):
    """Flags are a promise to scripts. If this change is meant: SURGERY_R1_WRITE_FLAGS=1 pytest tests/test_cli.py"""
    lines = []
    for command, text in helps.items():
        if "subcommands" in text:
            continue
        # An entry begins at the second column of a box; long ones go on further right.
        body = re.sub(r" *│\n│ {3,}", "  ", text)
        for entry in re.findall(r"^│ (\S.*?) *│$", body, flags=re.MULTILINE):
            flag, _, rest = entry.partition("  ")
            need = re.search(r"\((required|repeatable|default: [^()]*)\)$", rest)
            lines += [f"{' '.join(command)}: {flag} ({need[1]})"] if need else []
    text = "\n".join(lines) + "\n"
    if os.environ.get("SURGERY_R1_WRITE_FLAGS"):
        FLAGS.write_text(text)
    assert text == FLAGS.read_text(), test_flags_are_those_of_the_snapshot.__doc__


def test_help_of_training_names_the_shipped_configs(helps):
    assert len(shipped_configs()) > 2 and all(name in helps["train", "sft"] for name in shipped_configs())
    assert all(name in helps["data", "build"] for name in recipe.shipped_recipes())


def test_version_and_wrong_arguments(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"surgery-r1 {__version__}\n"
    for args in (["predict", "--modle", "x"], [], ["fly"], ["demo", "--frames", "many"]):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == 2 and "Traceback" not in capfd.readouterr().err


def test_as_a_module_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "surgery_r1", "score", "p.jsonl", "--data", "nowhere", "--split", "val", "--out", "s"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "surgery-r1: nowhere: no such dataset folder; surgery-r1 data build FOLDER... --out nowhere\n"
    )
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def predict_args(dataset_folder, tmp_path) -> list:
    return ["predict", "--data", dataset_folder, "--split", "val", "--out", tmp_path / "p.jsonl", "--limit", 8]


@pytest.fixture
def train_args(dataset_folder, tmp_path) -> list:
    config = tmp_path / "quick.toml"
    config.write_text(
        "[lora]\nenabled = false\n[sft]\ndirect_answers = true\nbatch_size = 2\nmax_steps = 2\neval_every = 1\n"
        "[eval]\ndev_samples = 1\nmax_new_tokens = 4\n"
    )
    return ["train", "sft", "--config", config, "--data", dataset_folder, "--out", tmp_path / "run"]


def test_missing_model(capfd, predict_args, train_args, dataset, tmp_path):
    message = r"no model at '/no/model'; give a folder .*--allow-hub"
    fails(capfd, *predict_args, "--model", "/no/model", match=message)
    fails(capfd, *train_args, "--model", "/no/model", match=message)
    fails(capfd, "export", "/no/model", tmp_path / "out", match=message)
    image = dataset.image_path(dataset.split("val")[0])
    fails(capfd, "ask", image, "Where?", "--model", "/no/model", "--out", tmp_path / "a.png", match=message)
    assert [path.name for path in tmp_path.iterdir()] == ["quick.toml"]


def test_missing_data(capfd, tmp_path, train_args):
    train_args[train_args.index("--data") + 1] = tmp_path / "none"
    fails(capfd, *train_args, match=r"none: no such dataset folder; surgery-r1 data build")
    args = ["--split", "val", "--out", tmp_path / "p.jsonl"]
    fails(capfd, "predict", "--model", "tiny", "--data", tmp_path / "none", *args, match="no such dataset folder")
    fails(capfd, "predict", "--model", "tiny", "--data", tmp_path, *args, match="not a dataset folder")
    fails(capfd, "ask", tmp_path / "no.png", "Where?", match=r"no\.png: no such image")


def test_dataset_whose_images_moved(capfd, predict_args, dataset_folder, scenes, tmp_path):
    moved = shutil.copytree(dataset_folder, tmp_path / "dataset")
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "image_root": "/gone"}))
    predict_args[2] = moved
    fails(capfd, *predict_args, "--model", "tiny", match="28 of 28 images missing.*if they moved.*--images ROOT")
    assert main([*map(str, predict_args), "--model", "tiny", "--images", str(scenes), "--max-new-tokens", "2"]) == 0


def test_config_errors(capfd, train_args):
    config = Path(train_args[3])
    config.write_text("[sft]\nmax_stepps = 3\n")
    fails(capfd, *train_args, match=r"quick\.toml:2: unknown key 'sft\.max_stepps'; did you mean sft\.max_steps\?")
    config.write_text("[rft]\nprompts = 4\ngenerations = 8\nmicro_batch = 12\n")
    fails(
        capfd, *train_args, match=r"rft\.micro_batch = 12 cannot hold whole groups: .*multiple of rft\.generations = 8"
    )
    config.write_text("[rft]\ngenerations = 1\n")
    fails(capfd, *train_args, match="a group needs at least 2")
    config.write_text("[sft.trl]\nlearning_rat = 1\n")
    fails(capfd, *train_args, match=r"\[sft\.trl\] unknown option 'learning_rat'; did you mean")
    fails(capfd, *train_args[:3], "tinny", *train_args[4:], match=r"tinny: no such config; .*tiny")
    assert [path.name for path in config.parent.iterdir()] == ["quick.toml"]


def test_values_set_on_the_command_line(capfd, train_args, tmp_path):
    """Several after one --set, and several --set; they reach the run folder, and a resumed run must have the same."""
    args = [*train_args, "--set", "sft.max_steps=1", "sft.warmup_steps=0", "--set", "sft.trl.lr_scheduler_type=linear"]
    assert main([*map(str, args), "--seed", "4", "--json"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["seed"], config["sft"]["max_steps"], config["sft"]["warmup_steps"]) == (4, 1, 0)
    assert config["sft"]["trl"] == {"lr_scheduler_type": "linear"} and config["sft"]["batch_size"] == 2
    args[args.index("sft.warmup_steps=0")] = "sft.warmup_steps=1"
    fails(capfd, *args, "--seed", 4, "--resume", match=r"sft\.warmup_steps was 0, now 1")


def test_wrong_values_set_on_the_command_line(capfd, train_args, tmp_path):
    message = r"--set: unknown key 'rft\.max_step'; did you mean rft\.max_steps\?"
    fails(capfd, *train_args, "--set", "rft.max_step=20", match=message)
    fails(capfd, "train", "rft", *train_args[2:], "--set", "seed=0", "rft.max_step=2", match=message)
    fails(capfd, "demo", "--out", tmp_path / "demo", "--set", "rft.max_step=20", match=message)
    message = r"--set: rows\.cot = 'two', expected int"
    fails(capfd, "data", "build", tmp_path, "--out", tmp_path / "ds", "--set", "rows.cot=two", match=message)
    assert [path.name for path in tmp_path.iterdir()] == ["quick.toml"]


def test_a_recipe_set_on_the_command_line(capfd, scenes, tmp_path):
    args = ["data", "build", str(scenes), "--out", str(tmp_path / "ds"), "--set", "rows.cot=2", "rows.visual_qa=0"]
    assert main([*args, "--json"]) == 0
    manifest = json.loads(capfd.readouterr().out)
    assert manifest["recipe"]["rows"] == {"visual_qa": 0, "grounding_qa": 1, "cot": 2}


def test_truncated_checkpoint(capfd, predict_args, train_args, tmp_path):
    torn = shutil.copytree(TINY_BASE, tmp_path / "torn")
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200_000])
    message = r"torn: the weights cannot be read .*copy it again or go back to an earlier one"
    fails(capfd, *predict_args, "--model", torn, match=message)
    fails(capfd, *train_args, "--model", torn, match=message)
    fails(capfd, "export", torn, tmp_path / "out", match=message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick.toml", "torn"]


def test_a_taken_run_folder(capfd, train_args, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    fails(capfd, *train_args, match=r"run: already holds a run; give --resume, or another --out")
    fails(capfd, *train_args[:-1], tmp_path / "none", "--resume", match="holds no run to resume")


def test_uploads_need_the_flag(capfd, train_args):
    config = Path(train_args[3])
    config.write_text('tracker = "wandb"\n' + config.read_text())
    fails(capfd, *train_args, match=r"tracker 'wandb' may send metrics .*--allow-upload")


# ----------------------------------------------------------------------------- full disks, interrupts, surprises


def full_disk(*_, **__):
    raise OSError(28, FULL)


def test_full_disk_while_predicting(capfd, predict_args, monkeypatch, tmp_path):
    from surgery_r1.evaluate import predict

    plain, written = predict.dump_json, []

    def fill(record):
        written.append(record)
        return plain(record) if len(written) <= 5 else full_disk()

    more = ["--model", "tiny", "--max-new-tokens", "2", "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(predict, "dump_json", fill)
        fails(capfd, *predict_args, *more, match="no space left on the disk; free some and run the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl.partial"]
    assert main([*map(str, predict_args), *more]) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 8


def test_full_disk_while_training(capfd, train_args, monkeypatch, tmp_path):
    """Checkpoints fail in the libraries, ``best`` in ours: either way one line, and --resume goes on."""
    run_folder = tmp_path / "run"

    def refuse(path):
        plain = torch.save

        def save(data, where, *args, **kwargs):
            if path in str(where):
                raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
            return plain(data, where, *args, **kwargs)

        return save

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse("checkpoint-2"))
        status, err = run(capfd, *train_args)
    assert status == 2 and err.rstrip().endswith(
        "no space left on the disk; free some and run the same command again, with --resume if it trains"
    )
    best = weights_sha256(run_folder / "best")
    with monkeypatch.context() as patch:
        patch.setattr("surgery_r1.models.save.save_description", full_disk)
        patch.setattr("surgery_r1.train.callbacks.DevCallback._count", always_better)
        status, err = run(capfd, *train_args, "--resume")
    assert status == 2 and "the model could not be saved" in err and "go on with --resume" in err
    assert weights_sha256(run_folder / "best") == best and not list(run_folder.glob("best.*"))
    assert main([*map(str, train_args), "--resume", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 2


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of so many MiB, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def of_size(mib: int) -> Path:
        size = f"remount,size={mib}M" if folder.is_mount() else f"size={mib}M"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True)
        if made.returncode:
            pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
        return folder

    yield of_size
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("mib", [4, 10, 14])
def test_a_disk_that_is_really_full_while_training(capfd, train_args, small_disk, mib):
    """Full in the weights of a checkpoint, in its optimiser (torch's archive writer), and in ``best``."""
    args = [*train_args[:-1], small_disk(mib) / "run"]
    status, err = run(capfd, *args)
    assert status == 2 and re.search("no space left on (the disk|device)", err, re.IGNORECASE), err
    assert "--resume" in err and "unexpected" not in err
    small_disk(80)
    assert main([*map(str, args), "--resume", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 2


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 2001472 vs 2001424",
        "basic_ios::clear: iostream error",
        f"Error while serializing: I/O error: {FULL} (os error 28)",
    ],
)
def test_what_libraries_say_of_a_full_disk(capfd, monkeypatch, predict_args, words):
    def fail(*_):
        raise RuntimeError(words)

    monkeypatch.setattr("surgery_r1.cli._run", fail)
    fails(capfd, *predict_args, match="no space left on the disk; free some and run the same command again, with --res")
    words = "at an unexpected position"
    fails(capfd, *predict_args, match="unexpected RuntimeError: at an unexpected position; --debug shows where")


def always_better(self, value, step):
    self.best, self.best_step, self.since = value, step, 0


def test_full_disk_while_writing_json(capfd, dataset_folder, tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text("")
    old = tmp_path / "scores"
    args = ["score", tmp_path / "p.jsonl", "--data", dataset_folder, "--split", "val", "--out", old]
    assert main([*map(str, args)]) == 0
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    monkeypatch.setattr("surgery_r1._util.files.os.replace", full_disk)
    fails(capfd, *args, match="no space left on the disk; free some space and run again")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_full_disk_while_exporting_and_asking(capfd, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("surgery_r1.models.save.write_json", full_disk)
    fails(capfd, "export", TINY_BASE, tmp_path / "out", match="could not be saved.*free some disk space")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("surgery_r1._util.files.os.replace", full_disk)
    image = dataset.image_path(dataset.split("val")[0])
    args = ["ask", image, "Where?", "--model", "tiny", "--out", tmp_path / "a.png", "--max-new-tokens", 2]
    fails(capfd, *args, match="no space left on the disk")
    assert list(tmp_path.iterdir()) == []


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c(capfd, predict_args, train_args, monkeypatch, tmp_path):
    """Interrupted at their hearts, commands end with 130 and what is done can be gone on with."""
    with monkeypatch.context() as patch:
        patch.setattr("surgery_r1.train.callbacks.Recorder.on_log", interrupt)
        status, err = run(capfd, *train_args)
    assert status == 130 and "Traceback" not in err and "--resume" in err.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr("surgery_r1.evaluate.generation.TransformersEngine.generate", interrupt)
        fails(capfd, *predict_args, "--model", "tiny", match="interrupted; what was finished is kept", status=130)
    assert not (tmp_path / "p.jsonl").exists()
    assert main([*map(str, train_args), "--resume", "--json"]) == 0


def test_surprises_are_one_line_too(capfd, predict_args, monkeypatch):
    def surprise(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("surgery_r1.evaluate.run.predict_with_model", surprise)
    fails(capfd, *predict_args, "--model", "tiny", match="unexpected RuntimeError: two lines; --debug shows where")
    monkeypatch.setattr(
        "surgery_r1.evaluate.run.predict_with_model", lambda *_, **__: Path("/no/such/file").read_text()
    )
    fails(capfd, *predict_args, "--model", "tiny", match="FileNotFoundError: .*/no/such/file")


def test_a_closed_pipe_is_no_error(tmp_path):
    """``surgery-r1 ... | head -1``"""
    code = "from surgery_r1.cli import main; import sys; sys.exit(main(['--version']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


# ------------------------------------------------------------------------------------------------- the way through


def test_commands_end_to_end(capfd, dataset_folder, train_args, tmp_path, dataset):
    """train -> export -> predict -> score -> ask, by flags alone."""
    assert main([*map(str, train_args)]) == 0
    assert "best on dev: joint" in capfd.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "README.md").is_file() and (tmp_path / "model" / "training_run.json").is_file()
    out = tmp_path / "p.jsonl"
    args = ["--data", str(dataset_folder), "--split", "val"]
    settings = ["--limit", "4", "--max-new-tokens", "8", "--no-reasoning"]
    assert main(["predict", "--model", str(tmp_path / "model"), *args, "--out", str(out), *settings]) == 0
    record = json.loads(out.read_text().splitlines()[0])
    assert record["reasoning"] is False and record["stage"] == "sft"
    assert main(["score", str(out), *args, "--out", str(tmp_path / "scores")]) == 0
    image = str(dataset.image_path(dataset.split("val")[0]))
    capfd.readouterr()
    asked = ["ask", image, "Where is suction located?", "--model", str(tmp_path / "run"), "--json"]
    assert main([*asked, "--max-new-tokens", "8", "--out", str(tmp_path / "answer.png")]) == 0
    assert json.loads(capfd.readouterr().out)["picture"] == str(tmp_path / "answer.png")
    assert (tmp_path / "answer.png").is_file()


def test_a_second_training_into_a_run_folder_is_refused(capfd, train_args, tmp_path):
    """Also with --resume, and before a model is loaded: the first one's folder is left alone."""
    code = "import sys; from pathlib import Path; from surgery_r1._util.locks import held\n"
    code += "with held(Path(sys.argv[1]), 'training'):\n print('held', flush=True)\n sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        for more in ([], ["--resume"], ["--model", "/no/model"]):
            message = (
                rf"{tmp_path / 'run'}: process {first.pid} on .* is already training here; wait until it has ended"
            )
            fails(capfd, *train_args, *more, match=message)
        assert not (tmp_path / "run").exists()
        first.kill()
    assert main([*map(str, train_args)]) == 0, "what a killed process leaves is in nobody's way"
    assert not (tmp_path / ".run.lock").exists()


@pytest.mark.slow
def test_a_second_training_takes_nothing_from_the_first(capfd, dataset_folder, tmp_path):
    """Two real processes: the second is refused while the first trains; killed, the first is resumed as ever."""
    config = tmp_path / "quick.toml"
    config.write_text(
        "[lora]\nenabled = false\n[sft]\nbatch_size = 4\nmax_steps = 12\neval_every = 4\npatience = 0\n"
        "[eval]\ndev_samples = 4\nmax_new_tokens = 8\n"
    )
    args = ["train", "sft", "--config", str(config), "--data", str(dataset_folder), "--json", "--out"]
    assert main([*args, str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-m", "surgery_r1", *args, str(out)], stdout=subprocess.DEVNULL) as first:
        while not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for more in ([], ["--resume"]):
            fails(capfd, *args, out, *more, match=f"{out}: process {first.pid} on .* is already training here")
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        first.kill()
    assert main([*args, str(out), "--resume"]) == 0
    assert weights_sha256(out / "best") == weights_sha256(tmp_path / "whole" / "best")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_training_killed_again_and_again_ends_as_if_it_had_not_been(dataset_folder, tmp_path, how):
    """Real signals at moments nobody chose, until the run is through: the same weights as in one go."""
    config = tmp_path / "quick.toml"
    config.write_text(
        "[lora]\nenabled = false\n[sft]\nbatch_size = 4\nmax_steps = 16\neval_every = 4\npatience = 0\n"
        "[eval]\ndev_samples = 4\nmax_new_tokens = 8\n"
    )
    command = [
        sys.executable,
        "-m",
        "surgery_r1",
        "train",
        "sft",
        "--config",
        config,
        "--data",
        dataset_folder,
        "--out",
    ]
    whole, run_folder = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*command, whole], capture_output=True, check=True)
    generator, statuses = random.Random(int(how)), []
    for _ in range(40):
        resume = ["--resume"] if (run_folder / "run.json").exists() else []
        with subprocess.Popen(
            [*command, run_folder, *resume],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A shell's background jobs ignore the interrupt, and hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            seen = (run_folder / "metrics.jsonl").stat().st_size if (run_folder / "metrics.jsonl").exists() else 0
            while process.poll() is None:
                path = run_folder / "metrics.jsonl"
                # Once it has come further than before, and with it past loading, at any moment.
                if path.exists() and path.stat().st_size > seen:
                    time.sleep(generator.uniform(0, 0.4))
                    process.send_signal(how)
                    break
                time.sleep(0.02)
            error = process.stderr.read().decode()
            process.stdout.read()
        statuses.append(process.returncode)
        assert "unexpected" not in error, error
        result = run_folder / "result.json"
        if result.exists() and not json.loads(result.read_text())["stopped"]:
            break
    assert len(statuses) > 2, "it was never interrupted"
    # -2, -15: the signal came when training was through and Python was closing down.
    expected = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {0, -15}, signal.SIGINT: {130, -2, 0}}[how]
    assert set(statuses) <= expected
    for name in ("best", "checkpoints/checkpoint-16"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (run_folder, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
