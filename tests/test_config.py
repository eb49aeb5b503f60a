from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from surgery_r1._util.checked import checked
from surgery_r1._util.toml import SHIPPED
from surgery_r1.data import recipe
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train.config import TrainConfig, load_config, parse_config, shipped_configs
from surgery_r1.train.run_folder import metrics_writer, prune_metrics, start_run
from surgery_r1.train.specialist.config import load_specialist_config, shipped_specialists


def fails(tmp_path, text: str) -> str:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SurgeryR1Error) as caught:
        load_config(path)
    return str(caught.value)


def test_a_shipped_config_is_for_training_or_a_recipe():
    known = shipped_configs() + recipe.shipped_recipes() + shipped_specialists()
    assert sorted(path.stem for path in SHIPPED.glob("*.toml")) == sorted(known)
    assert SHIPPED.parent.parent.parent.joinpath("configs").resolve() == SHIPPED.resolve()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs(path):
    load = load_config if path.stem in shipped_configs() else recipe.load_recipe
    load = load_specialist_config if path.stem in shipped_specialists() else load
    config = load(path.stem)
    assert config == load(path)
    assert path.read_text().startswith("# "), "a config opens with what it is for and its command"
    assert f"--config {path.stem}" in path.read_text()
    json.dumps(config.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_suit_trl(name, tmp_path, monkeypatch):
    """Their pass-through options are TRL's, their rewards exist, their cycles fit, and nothing is held off."""
    import torch

    from surgery_r1.train.options import Permissions
    from surgery_r1.train.rft import rft_arguments
    from surgery_r1.train.sft import sft_arguments

    if not torch.cuda.is_available():
        # Options for bf16 hardware are refused by TRL on other machines, which is not the config's fault.
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    for arguments in (sft_arguments, rft_arguments):
        assert arguments(load_config(name), tmp_path, Permissions())[1] == []


def test_all_errors_at_once_with_line_and_suggestion(tmp_path):
    message = fails(
        tmp_path,
        '[sft]\nmax_steps = 5\nlearning_rat = 1e-3\n\n[rft]\nmax_steps = "many"\nprompts = 2.5\n'
        '[evall]\nx = 1\n[lora]\nenabled = "yes"\n',
    )
    path = tmp_path / "c.toml"
    assert f"{path}:3: unknown key 'sft.learning_rat'; did you mean sft.learning_rate?" in message
    assert f"{path}:6: rft.max_steps = 'many', expected int" in message
    assert f"{path}:7: rft.prompts = 2.5, expected int" in message
    assert f"{path}:8: unknown key 'evall'; did you mean eval?" in message
    assert f"{path}:11: lora.enabled = 'yes', expected bool" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed = true", "seed = True, expected int"),
        ("threads = 1.0", "expected int"),
        ('[model]\nfreeze_vision = 1\ndtype = "fp8"', "dtype = 'fp8', expected one of ['auto'"),
        ("[sft]\ntasks = 'cot'", "expected a list of str"),
        ("[sft]\ntasks = [1]", "expected a list of str"),
        ("[sft]\ntasks = []", "sft.tasks is empty"),
        ("[sft]\ntasks = ['vqa']", "'vqa', not one of"),
        ("sft = 3", "sft must be a table"),
        ("[sft]\ntrl = 3", "expected a table"),
        ("[rft]\nrewards = {answer = 'much'}", "a number in ['answer']"),
        ("[sft]\nlearning_rate = nan", "sft.learning_rate = nan, expected 0 or more"),
        ("[rft]\nlearning_rate = inf", "rft.learning_rate = inf"),
        ("[sft]\neval_every = 0", "sft.eval_every = 0, expected 1 or more"),
        ("[eval]\nbatch_size = 0", "eval.batch_size = 0"),
        ("seed = -1", "seed = -1"),
        ("[model\n", "not valid TOML"),
        ("what_is_this = 1", "known keys: eval, lora, model"),
    ],
)
def test_wrong_values(tmp_path, text, expected):
    assert expected in fails(tmp_path, text)


def test_numbers_out_of_bounds_are_shown_beside_other_errors(tmp_path):
    message = fails(tmp_path, "[rft]\ngenerations = 1\nprompts = 'many'\n\n[sft]\nlearning_rate = nan\n")
    path = tmp_path / "c.toml"
    assert f"{path}:2: rft.generations = 1, expected 2 or more: a group needs at least 2 completions" in message
    assert f"{path}:3: rft.prompts = 'many', expected int" in message
    assert f"{path}:6: sft.learning_rate = nan, expected 0 or more" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[rows]\ncot = -1", "2: rows.cot = -1, expected 0 or more"),
        ("[reasoning]\nattempts = 0", "2: reasoning.attempts = 0, expected 1 or more"),
        ("[teacher]\ntimeout = 0", "2: teacher.timeout = 0, expected seconds above 0"),
        ("[teacher]\ntimeout = inf", "2: teacher.timeout = inf, expected seconds above 0"),
        ("[teacher]\ntemperature = nan", "2: teacher.temperature = nan, expected 0 or more"),
        ("teacher = { retries = -1 }", "1: teacher.retries = -1, expected 0 or more"),
    ],
)
def test_bounds_of_recipes(tmp_path, text, expected):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(SurgeryR1Error) as caught:
        recipe.load_recipe(path)
    assert f"{path}:{expected}" in str(caught.value)


def test_a_default_is_in_bounds():
    assert parse_config(TrainConfig().to_json()) == TrainConfig()
    assert checked(recipe.Recipe, asdict(recipe.Recipe())) == recipe.Recipe()


@pytest.mark.parametrize(
    "rft", ["generations = 1", "prompts = 0", "micro_batch = 12", "micro_batch = 4", "micro_batch = -8"]
)
def test_a_batch_that_cannot_hold_a_group(tmp_path, rft):
    assert "rft." + rft in fails(tmp_path, f"[rft]\n{rft}\n")


def test_a_batch_of_whole_groups(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[rft]\nprompts = 4\ngenerations = 8\nmicro_batch = 16\n")
    assert load_config(path).rft.micro_batch == 16


def write(tmp_path, **texts: str) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b", "qwen3_vl_8b"])
def test_shipped_configs_that_extend_are_the_7b_config_with_another_base(name, tmp_path):
    config = load_config(name)
    text = (SHIPPED / "qwen2_5_vl_7b.toml").read_text()
    assert "extends" not in text and text.count("Qwen/Qwen2.5-VL-7B-Instruct") == 1
    (tmp_path / "whole.toml").write_text(text.replace("Qwen/Qwen2.5-VL-7B-Instruct", config.model.base))
    assert config == load_config(tmp_path / "whole.toml")
    assert config.model.base != load_config("qwen2_5_vl_7b").model.base
    assert "extends" not in json.dumps(config.to_json())


def test_a_config_that_extends_says_only_what_differs(tmp_path):
    (tmp_path / "below").mkdir()
    write(
        tmp_path,
        one='extends = "tiny"\n[sft]\nmax_steps = 7\n[sft.trl]\nmax_grad_norm = 0.5\n[rft]\nrewards = { answer = 1 }\n',
        **{"below/two": 'extends = "../one.toml"\nseed = 3\n[sft]\ntasks = ["cot"]\n[rft.trl]\nbeta = 0.1\n'},
    )
    tiny, two = load_config("tiny"), load_config(tmp_path / "below" / "two.toml")
    assert (two.seed, two.sft.max_steps, two.sft.tasks) == (3, 7, ("cot",))
    assert two.sft.trl == {"lr_scheduler_type": "linear", "max_grad_norm": 0.5}
    assert two.rft.trl == {"lr_scheduler_type": "constant_with_warmup", "beta": 0.1}
    assert two.rft.rewards == {"answer": 1.0}, "a mixture is one value"
    assert (two.model, two.lora, two.eval) == (tiny.model, tiny.lora, tiny.eval)
    assert replace(two.rft, rewards=tiny.rft.rewards, trl=tiny.rft.trl) == tiny.rft


def test_errors_name_the_file_in_which_they_stand(tmp_path):
    write(
        tmp_path,
        parent="[sft]\nmax_step = 5\npatience = -1\nbatch_size = 0\n\n[rft]\nprompts = 4\nmicro_batch = 12\n",
        child='extends = "parent.toml"\n\n[rft]\ngeneration = 8\n[sft]\nbatch_size = 0\ndirect_answers = 1\n',
    )
    with pytest.raises(SurgeryR1Error) as caught:
        load_config(tmp_path / "child.toml")
    parent, child = tmp_path / "parent.toml", tmp_path / "child.toml"
    assert f"{parent}:2: unknown key 'sft.max_step'; did you mean sft.max_steps?" in str(caught.value)
    assert f"{parent}:3: sft.patience = -1, expected 0 or more" in str(caught.value)
    assert f"{child}:4: unknown key 'rft.generation'; did you mean rft.generations?" in str(caught.value)
    assert f"{child}:6: sft.batch_size = 0, expected 1 or more" in str(caught.value)
    assert f"{child}:7: sft.direct_answers = 1, expected bool" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 5
    # What is fine alone and wrong together has the place of the key that the message begins with.
    write(tmp_path, parent="[rft]\nprompts = 4\nmicro_batch = 12\n", child='extends = "parent.toml"\nseed = 1\n')
    with pytest.raises(SurgeryR1Error, match=r"parent\.toml:3: rft\.micro_batch = 12 cannot hold whole groups"):
        load_config(child)


def test_extends_that_leads_nowhere(tmp_path):
    write(
        tmp_path,
        a='extends = "b.toml"\n',
        b='seed = 1\nextends = "a.toml"\n',
        self='extends = "self.toml"\n',
        lost='\nextends = "tinny"\n',
        folder='extends = "."\n',
        number="extends = 3\n",
        nested='[sft]\nextends = "tiny"\n',
        typo='extend = "tiny"\n',
        kind='extends = "surgery_r1_54k"\n[sft]\nmax_steps = 1\n',
        recipe='extends = "tiny"\n',
    )
    for name, expected in (
        ("a", r"b\.toml:2: extends in a circle: a\.toml -> b\.toml -> a\.toml"),
        ("self", r"self\.toml:1: extends in a circle: self\.toml -> self\.toml"),
        ("lost", r"lost\.toml:2: extends = 'tinny': no such config; give a TOML file .* one of .*tiny"),
        ("folder", r"folder\.toml:1: extends = '\.': no such config"),
        ("number", r"number\.toml:1: extends = 3, expected the name of a config or a path"),
        ("nested", r"nested\.toml:2: unknown key 'sft\.extends'"),
        ("typo", r"typo\.toml:1: unknown key 'extend'; did you mean extends\?"),
        ("kind", r"kind\.toml:1: extends = 'surgery_r1_54k', a file of another kind: .* reasoning, rows; extend"),
    ):
        with pytest.raises(SurgeryR1Error, match=expected):
            load_config(tmp_path / f"{name}.toml")
    with pytest.raises(SurgeryR1Error, match=r"recipe\.toml:1: extends = 'tiny', a file of another kind: .*54k"):
        recipe.load_recipe(tmp_path / "recipe.toml")


def test_recipes_extend_as_well(tmp_path):
    write(tmp_path, mine='extends = "surgery_r1_54k"\ntitle = "mine"\n[rows]\ncot = 1\n')
    parent, mine = recipe.load_recipe("surgery_r1_54k"), recipe.load_recipe(tmp_path / "mine.toml")
    assert mine == replace(parent, title="mine", rows=replace(parent.rows, cot=1))
    write(tmp_path, mine='extends = "surgery_r1_54k"\n[rows]\ncott = 1\n')
    with pytest.raises(SurgeryR1Error, match=r"mine\.toml:3: unknown key 'rows\.cott'; did you mean rows\.cot\?"):
        recipe.load_recipe(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("rft.max_steps=20", "rft.max_steps", 20),
        ("sft.learning_rate = 1e-4", "sft.learning_rate", 1e-4),
        ("rft.temperature=2", "rft.temperature", 2.0),
        ('sft.tasks=["cot"]', "sft.tasks", ("cot",)),
        ("seed=5", "seed", 5),
        ("model.base=Qwen/Qwen2.5-VL-3B-Instruct", "model.base", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("model.base=C:\\models = new", "model.base", "C:\\models = new"),
        ('model.base="7"', "model.base", "7"),
        ("model.box_space=", "model.box_space", ""),
        ("sft.trl.beta=0.1", "sft.trl", {"lr_scheduler_type": "linear", "beta": 0.1}),
        ("sft.trl={beta=0.1}", "sft.trl", {"lr_scheduler_type": "linear", "beta": 0.1}),
        ("sft.trl.model_init_kwargs.x=true", "sft.trl.model_init_kwargs", {"x": True}),
        ("rft={max_steps=7}", "rft.eval_every", 65),
        ("rft.rewards={answer=1.0}", "rft.rewards", {"answer": 1.0}),
    ],
)
def test_overrides(override, key, value):
    found = load_config("tiny", overrides=(override,))
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


def test_overrides_that_name_one_key_of_a_mixture_keep_the_others(tmp_path):
    tiny = load_config("tiny").rft.rewards
    assert load_config("tiny", overrides=("rft.rewards.box=2",)).rft.rewards == {**tiny, "box": 2.0}
    write(tmp_path, bare="seed = 1\n")
    defaults = load_config(tmp_path / "bare.toml", overrides=("rft.rewards.box=2",)).rft.rewards
    assert defaults == {**TrainConfig().rft.rewards, "box": 2.0}
    both = load_config("tiny", overrides=("rft.rewards={answer=1}", "rft.rewards.box=2", "seed=1", "seed=2"))
    assert both.rft.rewards == {"answer": 1.0, "box": 2.0} and both.seed == 2


def test_all_errors_of_overrides_and_files_at_once(tmp_path):
    write(tmp_path, c="[sft]\nmax_step = 5\npatience = -1\n\n[rft]\nprompts = 0\n")
    wrong = ("rft.max_step=20", "sft.patience=-2", "rft.max_steps=many", "nonsense", "=1", "a b=1", "extends=tiny")
    wrong += ("rft.rewards={answer=1", "sft.tasks=1\nseed=2", "seed.x=1", "rft=3", "lora.rank=1.5")
    with pytest.raises(SurgeryR1Error) as caught:
        load_config(tmp_path / "c.toml", overrides=wrong)
    lines = caught.value.what.splitlines()
    for expected in (
        f"{tmp_path / 'c.toml'}:2: unknown key 'sft.max_step'; did you mean sft.max_steps?",
        "--set: sft.patience = -2, expected 0 or more",
        "--set: 'nonsense' is not KEY=VALUE, such as rft.max_steps=20",
        "--set: '=1' is not KEY=VALUE, such as rft.max_steps=20",
        "--set: 'a b=1' is not KEY=VALUE, such as rft.max_steps=20",
        "--set: 'extends=tiny': only a file can extend another",
        "--set: rft.rewards = {answer=1 is not valid TOML: check its brackets, quotes and commas",
        "--set: sft.tasks = '1\\nseed=2', expected a list of str",
        "--set: seed = {'x': 1}, expected int",
        "--set: rft must be a table, found 3",
        "--set: lora.rank = 1.5, expected int",
    ):
        assert expected in lines
    assert len(lines) == 11 and str(caught.value).endswith("; correct the config and run again")
    with pytest.raises(SurgeryR1Error) as caught:
        load_config(tmp_path / "c.toml", overrides=wrong[:1] + wrong[2:3])
    assert "--set: unknown key 'rft.max_step'; did you mean rft.max_steps?" in str(caught.value)
    assert "--set: rft.max_steps = 'many', expected int" in str(caught.value)
    assert f"{tmp_path / 'c.toml'}:6: rft.prompts = 0, expected 1 or more" in str(caught.value)
    with pytest.raises(SurgeryR1Error, match=r"^--set: rft\.micro_batch = 12 cannot hold whole groups"):
        load_config("tiny", overrides=("rft.micro_batch=12",))


def test_overrides_of_recipes():
    assert recipe.load_recipe() == recipe.Recipe()
    assert recipe.load_recipe(overrides=("rows.cot=2", "title=mine")).rows.cot == 2
    assert recipe.load_recipe("surgery_r1_54k", overrides=("rows.cot=1",)).rows_per_question == 5
    with pytest.raises(SurgeryR1Error, match=r"^--set: unknown key 'rows\.cott'; did you mean rows\.cot\?"):
        recipe.load_recipe(overrides=("rows.cott=1",))
    with pytest.raises(SurgeryR1Error, match=r"^--set: reasoning\.attempts = 0, expected 1 or more"):
        recipe.load_recipe("surgery_r1_54k", overrides=("reasoning.attempts=0",))
    with pytest.raises(SurgeryR1Error, match=r"^--set: rows: a question becomes no row"):
        recipe.load_recipe(overrides=("rows={visual_qa=0, grounding_qa=0, cot=0}",))


@pytest.mark.parametrize(
    ("text", "overrides", "rft", "dev"),
    [
        ("", (), True, True),
        ("[rft]\nreasoning = false\n", (), False, False),
        ("[eval]\nreasoning = false\n", (), True, False),
        ("[rft]\nreasoning = false\n[eval]\nreasoning = false\n", (), False, False),
        ("[rft]\nreasoning = false\n[eval]\nreasoning = true\n", ("rft.reasoning=true",), True, True),
        ("[eval]\ndev_samples = 3\n", ("rft.reasoning=false",), False, False),
    ],
)
def test_what_dev_is_asked_for(tmp_path, text, overrides, rft, dev):
    write(tmp_path, c=text)
    config = load_config(tmp_path / "c.toml", overrides=overrides)
    assert (config.rft.reasoning, config.eval.reasoning) == (rft, dev)
    assert config.to_json()["eval"]["reasoning"] is dev


def test_dev_is_not_asked_for_what_rft_does_not_train(tmp_path):
    message = fails(tmp_path, "[rft]\nreasoning = false\n[eval]\nreasoning = true\n")
    assert f"{tmp_path / 'c.toml'}:4: eval.reasoning = true, but rft.reasoning = false: " in message
    assert "expected bool" in fails(tmp_path, "[rft]\nreasoning = 0\n")
    assert "eval must be a table" in fails(tmp_path, "eval = 1\n[rft]\nreasoning = false\n")


def test_no_such_config(tmp_path):
    for name in ("tinny", tmp_path / "none.toml", tmp_path, tmp_path / "x" / "y.toml"):
        with pytest.raises(SurgeryR1Error, match=r"no such config.*tiny"):
            load_config(name)
    (tmp_path / "latin.toml").write_bytes("# \xe9".encode("latin-1"))
    with pytest.raises(SurgeryR1Error, match="not UTF-8"):
        load_config(tmp_path / "latin.toml")


def test_run_folder(tmp_path):
    config = TrainConfig()
    run, facts = tmp_path / "run", {"stage": "sft", "rows": 3}

    def start(config=config, facts=facts, **more):
        start_run(run, config.to_json(), facts, {"base": "here"}, free={"threads", "rft."}, **more)

    with pytest.raises(SurgeryR1Error, match="no run to resume"):
        start(resume=True)
    start()
    record = json.loads((run / "run.json").read_text())
    assert record["rows"] == 3 and record["base"] == "here" and record["versions"]["trl"]
    with pytest.raises(SurgeryR1Error, match=r"already holds a run; give --resume"):
        start()
    start(resume=True)
    start(replace(config, threads=2, rft=replace(config.rft, prompts=3)), resume=True)
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 2
    with pytest.raises(SurgeryR1Error, match=r"seed was 0, now 1"):
        start(replace(config, seed=1), resume=True)
    with pytest.raises(SurgeryR1Error, match=r"rows was 3, now 4"):
        start(facts={**facts, "rows": 4}, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SurgeryR1Error, match="not empty"):
        start_run(tmp_path / "other", {}, {}, {})


def test_a_run_killed_before_its_config_was_written_can_be_resumed(tmp_path):
    config = TrainConfig().to_json()
    start_run(tmp_path / "run", config, {}, {})
    (tmp_path / "run" / "config.json").unlink()
    start_run(tmp_path / "run", config, {}, {}, resume=True)
    assert (tmp_path / "run" / "config.json").is_file()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    write = metrics_writer(tmp_path)
    for step in (0, 5, 5, 10):
        write({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 3, "lo')
    assert [r["step"] for r in prune_metrics(tmp_path, 5)] == [0, 5, 5]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert prune_metrics(tmp_path, -1) == [] and prune_metrics(tmp_path / "none", 5) == []
