from __future__ import annotations

import json
import shutil
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1.cli.data import Build, Check, parse_size
from surgery_r1.data.formats import validation
from surgery_r1.errors import SurgeryR1Error

EXAMPLE = Path(__file__).parents[1] / "examples/own_frames"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lf.small_set(tmp_path_factory.mktemp("labels"))


def test_cli_check(folder, tmp_path, capsys):
    assert Check(folder, sheet=tmp_path / "sheet.png").run() == 0
    out = capsys.readouterr().out
    assert "No errors." in out and "image-normal" in out and (tmp_path / "sheet.png").stat().st_size
    label = lf.faulty(tmp_path / "set")
    assert Check(tmp_path / "set").run() == 1
    assert f"{label}:5: {validation.FIELD_COUNT}" in capsys.readouterr().out
    assert Check(tmp_path / "set", json=True).run() == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 4


def test_cli_build(folder, tmp_path, capsys):
    assert Build((folder,), tmp_path / "ds").run() == 0
    assert "60 training rows" in capsys.readouterr().out
    assert Build((folder,), tmp_path / "ds", overwrite=True, json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["rows"]["cot"] == 20


def test_an_adapter_that_lies_with_the_folder_is_used(tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level("INFO")
    own = shutil.copytree(EXAMPLE, tmp_path / "own")
    assert Check(own).run() == 0
    assert caplog.messages == [f"{own} is read by {own}/adapter.toml (--adapter names another)"]
    capsys.readouterr()
    assert Check(own, json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 54
    caplog.clear()
    assert Build((own,), tmp_path / "ds", json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["samples"]["total"] == 54 and len(caplog.messages) == 1
    # Beside it, however the folder is named.
    (own / "adapter.toml").rename(tmp_path / "adapter.toml")
    monkeypatch.chdir(own)
    for name in (own, Path(), Path("../own")):
        caplog.clear()
        assert Check(name).run() == 0
        assert "adapter.toml (--adapter" in caplog.text


def test_a_named_adapter_wins(tmp_path, capsys):
    own = shutil.copytree(EXAMPLE, tmp_path / "own")
    other = tmp_path / "other.toml"
    other.write_text((own / "adapter.toml").read_text().replace('"own_frames"', '"other"'))
    assert Check(own, adapter=str(other), json=True).run() == 0
    out, aside = capsys.readouterr()
    assert list(json.loads(out)["location_rule"]["by_source"]) == ["other"] and aside == ""
    with pytest.raises(SurgeryR1Error, match="adapter endovis18: images"):
        Check(own, adapter="endovis18").run()


def test_a_folder_without_labels_says_what_is_expected(tmp_path):
    with pytest.raises(SurgeryR1Error, match=r"name an --adapter, or put an adapter\.toml in the folder"):
        Check(tmp_path).run()


@pytest.mark.parametrize("text", ["", "320", "320x", "x256", "-1x5", "3.5x2", "٣x٤"])
def test_bad_sizes(text):
    with pytest.raises(SurgeryR1Error, match="320x256"):
        parse_size(text)
