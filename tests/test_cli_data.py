from __future__ import annotations

import json

import label_folders as lf
import pytest

from surgery_r1.cli.data import Build, Check, parse_size
from surgery_r1.data.formats import validation
from surgery_r1.errors import SurgeryR1Error


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


@pytest.mark.parametrize("text", ["", "320", "320x", "x256", "-1x5", "3.5x2", "٣x٤"])
def test_bad_sizes(text):
    with pytest.raises(SurgeryR1Error, match="320x256"):
        parse_size(text)
