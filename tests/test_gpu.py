"""``surgery-r1 gpu``: what it measures, on the CPU as far as that goes, and what it says where there is no GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from surgery_r1.bench.compare import PEAKS
from surgery_r1.bench.gpu import exactness, memory, plan
from surgery_r1.bench.gpu.sizes import Shape, work_of
from surgery_r1.bench.gpu.table import MEASUREMENTS, NOT_YET, table
from surgery_r1.bench.shapes import Work, build_processor, random_model
from surgery_r1.cli import gpu as cli_gpu
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
SHAPES = ("3b", "7b")


def test_the_page_shows_what_was_measured():
    expected = table(plan.records(PAGE.with_name("gpu"), SHAPES), SHAPES)
    found = re.search(r"<!-- gpu -->\n(.*?)\n<!-- /gpu -->", PAGE.read_text(), re.DOTALL)
    assert found and found[1] == expected, f"write between the markers of docs/gpu.md:\n{expected}"


def test_the_command_knows_the_measurements_and_shapes():
    assert get_args(cli_gpu.Name) == tuple(MEASUREMENTS)
    assert set(get_args(Shape)) == {*SHAPES, "tiny"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path, capfd):
    assert main(["gpu", "--out", str(tmp_path / "gpu")]) == 2
    said = capfd.readouterr()
    told = "no GPU here: torch sees none; run it on a machine with one; --device cpu --shape tiny tries it here"
    assert said.err == f"surgery-r1: {told}\n"
    assert main(["gpu", "--device", "cpu", "--out", str(tmp_path / "gpu")]) == 2
    assert "a CPU says nothing of a GPU; give --shape tiny" in capfd.readouterr().err
    assert said.out == "" and not (tmp_path / "gpu").exists()


def errors(log_probs: float, gradient: float) -> dict:
    return {"log_probs": np.full(4, log_probs, np.float32), "w": np.full(9, 1 + gradient, np.float32)}


def test_exactness_is_judged_by_what_plain_rows_lose():
    exact, plain = errors(0, 0), errors(0.01, 0.1)
    found = exactness.compared(exact, plain, errors(-0.012, 0.05))
    assert found["log_probs"] == pytest.approx({"plain": 0.01, "shared": 0.012, "apart": 0.022, "ratio": 1.2})
    assert found["gradients"] == pytest.approx({"plain": 0.1, "shared": 0.05, "apart": 0.05, "ratio": 0.5}, rel=1e-5)
    assert found["reached"]
    # Either may spoil it.
    assert not exactness.compared(exact, plain, errors(0.013, 0.1))["reached"]
    assert not exactness.compared(exact, plain, errors(0.01, 0.13))["reached"]
    with pytest.raises(SurgeryR1Error, match="train different weights"):
        exactness.compared(exact, plain, {"log_probs": exact["log_probs"]})
    with pytest.raises(SurgeryR1Error, match="gradients are all zero"):
        exactness.compared(errors(0, -1), plain, plain)


def test_the_model_is_the_same_in_both_precisions():
    work = Work(image_tokens=30)
    tokenizer = build_processor(work, deduplicate=True).tokenizer
    one, other = (random_model(Work(image_tokens=30, dtype=dtype), tokenizer) for dtype in ("float32", "bfloat16"))
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert mine.dtype == torch.float32 and theirs.dtype == torch.bfloat16
        assert torch.equal(mine, theirs.float()), name
    # Rotary frequencies are computed, not drawn: they keep their precision.
    buffers = {name: value for name, value in one.named_buffers() if "inv_freq" in name}
    for name, value in buffers.items():
        assert torch.equal(value, value.bfloat16().float()) is False, name
    assert buffers


def test_memory_is_searched_downwards():
    asked = []

    def peak_of(micro, tile):
        asked.append((micro, tile))
        return None if micro > 16 else micro * 2**20 + tile

    tries = memory.search(work_of("rft", "7b", "cuda", questions=4), peak_of)
    assert asked == [(32, 32768), (16, 32768), (8, 32768), (8, 8192), (8, 2048)]
    assert tries[0] == {"micro_batch": 32, "tile": 32768, "bytes": None} and tries[-1]["bytes"] == 8 * 2**20 + 2048


def test_peaks_by_the_name_of_the_device():
    def peak_of(device, **more):
        return plan._peak(plan.Plan(("rft",), ("7b",), "cuda", **more), device)

    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12 and peak_of("A new one", peak_tflops=2.5) == 2.5e12
    with pytest.raises(SurgeryR1Error, match="peak of A new one is not known here; give --peak-tflops"):
        peak_of("A new one")
    # What is no step needs none.
    assert plan._peak(plan.Plan(("exact",), ("7b",), "cuda"), "A new one") is None and min(PEAKS.values()) > 1e14


def test_what_is_there_is_not_measured_again_and_a_failure_costs_nothing_else(tmp_path, monkeypatch):
    done = []

    def measure(name, shape, *_):
        done.append(name)
        if name == "flex" and len(done) < 3:
            raise SurgeryR1Error("out of memory")
        return {"found": name}

    monkeypatch.setattr(plan, "_measure", measure)
    chosen = plan.Plan(("exact", "flex", "memory"), ("tiny",), "cpu")
    said: list[str] = []
    with pytest.raises(
        SurgeryR1Error, match=r"1 of 3 measurements failed: flex tiny: out of memory; the others are kept"
    ):
        plan.run(chosen, tmp_path, said.append)
    assert done == ["exact", "flex", "memory"]
    plan.run(chosen, tmp_path, said.append)
    assert done == ["exact", "flex", "memory", "flex"]
    assert f"exact tiny: measured already, in {tmp_path / 'exact-tiny.json'}" in said
    record = json.loads((tmp_path / "flex-tiny.json").read_text())
    assert record["command"] == "surgery-r1 gpu flex --shape tiny --device cpu" and record["machine"]["torch"]
    assert len(plan.records(tmp_path, ("tiny",))) == 3
    record["machine"]["device"] = "another"
    (tmp_path / "flex-tiny.json").write_text(json.dumps(record))
    with pytest.raises(SurgeryR1Error, match=r"flex-tiny.json: was measured on another, this is .*another --out"):
        plan.run(chosen, tmp_path, said.append)


@pytest.mark.slow
def test_every_measurement_runs_on_a_cpu(tmp_path, capfd, monkeypatch):
    monkeypatch.undo()  # processes talk over local sockets
    command = ["gpu", "exact", "flex", "rft", "memory", "--device", "cpu", "--shape", "tiny", "--pairs", "1"]
    command += ["--out", str(tmp_path), "--peak-tflops", "1"]
    assert main(command) == 0
    found = {
        name: json.loads((tmp_path / f"{name}-tiny.json").read_text()) for name in ("exact", "flex", "rft", "memory")
    }
    # bfloat16 rounds, and both ways by as much.
    assert found["exact"]["reached"] and 1e-4 < found["exact"]["log_probs"]["plain"] < 0.1
    assert found["exact"]["log_probs"]["apart"] > 0
    # Lengths differ, and flex attention is compiled once more for the second at most.
    flex = found["flex"]
    assert len({step["tokens"] for step in flex["steps"]}) > 3
    assert flex["steps"][0]["graphs"] > 0 and flex["compiled_later"] == 0 and 0 < flex["mask_share"] < 1
    assert 0 < found["rft"]["mfu_unique"]["ours"] < 1 and found["rft"]["peak_operations_per_second"] == 1e12
    assert found["memory"]["smallest"]["bytes"] > 2**26 and len(found["memory"]["tries"]) == 4
    assert NOT_YET in (shown := capfd.readouterr().out) and "completions a pass" in shown
