"""Files that are not what they seem: pipes, links in a circle, images that models refuse, endless lines.

Each is one error with its place; none hangs, fills the memory or ends the check of the others.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import label_folders as lf
import pytest
from PIL import Image

from surgery_r1._util.files import open_regular, read_json, read_jsonl
from surgery_r1._util.images import MAX_ASPECT, MAX_PIXELS, ImageSizeError, opened_image
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.check import check_folder
from surgery_r1.data.formats import lines, validation
from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.endovis import read_folder
from surgery_r1.data.formats.reader import FormatReader
from surgery_r1.data.formats.source import read_all
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.encode import image_dimensions, load_image
from surgery_r1.models.runs import recorded_info


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    # Bound by a relative name: the paths of sockets are short.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def folder(path: Path) -> None:
    path.mkdir()


ODD = pytest.mark.parametrize("make", [pipe, listening, device, circle, dangling])


@ODD
def test_a_label_that_is_no_file_is_one_error(tmp_path, make):
    lf.small_set(tmp_path / "set")
    label = tmp_path / "set/seq_2/vqla/label/frame003_QA.txt"
    label.unlink()
    make(label)
    content = read_folder(tmp_path / "set")
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), None, validation.UNREADABLE)
    assert error.value and error.fix and len(content.frames) == 5
    with pytest.raises(SurgeryR1Error, match="label file that cannot be read"):
        build_dataset([tmp_path / "set"], tmp_path / "ds")
    manifest = build_dataset([tmp_path / "set"], tmp_path / "ds", on_fault="skip")
    assert manifest["skipped"] == {validation.UNREADABLE: 1} and manifest["frames"]["total"] == 5


@ODD
def test_a_label_of_a_dataset_format_too(tmp_path, make):
    lf.small_set(tmp_path)
    label = tmp_path / "seq_2/vqla/label/frame003_QA.txt"
    label.unlink()
    make(label)
    content = read_all(FormatReader(load_format("endovis18"), tmp_path))
    assert [(e.path, e.what) for e in content.errors] == [(str(label), validation.UNREADABLE)]


@ODD
def test_an_image_that_is_no_file_is_one_error(tmp_path, make):
    lf.small_set(tmp_path)
    image = tmp_path / "seq_2/left_frames/frame003.png"
    image.unlink()
    make(image)
    (error,) = check_folder(tmp_path).errors
    assert error.what in (validation.TORN_IMAGE, validation.MISSING_IMAGE) and str(image) in error.value
    with pytest.raises(SurgeryR1Error, match=r"frame003\.png: (no such image|the image cannot be opened)"):
        load_image(image)


@pytest.mark.parametrize("make", [pipe, listening, device, circle, dangling, folder])
def test_a_format_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "a.toml")
    with pytest.raises(SurgeryR1Error, match="no such config"):
        load_format(tmp_path / "a.toml")


def test_open_regular(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with open_regular(tmp_path / "b") as handle:
        assert handle.read() == b"abc"
    pipe(tmp_path / "p")
    with pytest.raises(OSError, match="not a regular file but a pipe"):
        open_regular(tmp_path / "p")


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", data) + block(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_460, 9_460), (2**31 - 1, 1), (100_000, 10), (10, 100_000)])
def test_a_size_that_models_refuse_is_found_by_the_check(tmp_path, size):
    label = lf.put_frame(tmp_path)
    image = tmp_path / "seq_2/left_frames/frame003.png"
    image.write_bytes(claimed_png(*size))
    (error,) = check_folder(tmp_path).errors
    assert (error.path, error.line, error.what) == (str(label), 1, validation.IMAGE_SIZE)
    assert str(image) in error.value and error.fix
    # One definition: what loads images for a model says the same.
    for load in (load_image, image_dimensions):
        with pytest.raises(ImageSizeError):
            load(image)


def test_the_longest_and_the_largest_image_that_is_taken(tmp_path):
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    path = tmp_path / "a.png"
    path.write_bytes(claimed_png(10 * MAX_ASPECT, 10))
    with opened_image(path) as image:
        assert image.size == (10 * MAX_ASPECT, 10)
    path.write_bytes(claimed_png(9_000, 9_000))
    with opened_image(path) as image:
        assert image.size == (9_000, 9_000)


def damaged(data: bytes, at: float) -> bytes:
    place = int(len(data) * at)
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7, 0.9])
def test_a_damaged_block_of_a_png_is_found(tmp_path, at):
    lf.put_frame(tmp_path)
    image = tmp_path / "seq_2/left_frames/frame003.png"
    noise = Image.effect_noise((160, 128), 60)
    noise.save(image)
    assert check_folder(tmp_path).errors == ()
    image.write_bytes(damaged(image.read_bytes(), at))
    (error,) = check_folder(tmp_path).errors
    assert error.what == validation.TORN_IMAGE


def test_a_jpeg_cut_short_is_found(tmp_path):
    lf.put_frame_17(tmp_path)
    (image,) = tmp_path.glob("left_frames/*.jpg")
    Image.effect_noise((160, 128), 60).convert("RGB").save(image)
    assert check_folder(tmp_path).errors == ()
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    (error,) = check_folder(tmp_path).errors
    assert error.what == validation.TORN_IMAGE


def test_an_image_of_another_kind_is_refused(tmp_path):
    lf.put_frame(tmp_path)
    image = tmp_path / "seq_2/left_frames/frame003.png"
    Image.new("RGB", (160, 128)).save(image, "GIF")
    (error,) = check_folder(tmp_path).errors
    assert error.what == validation.TORN_IMAGE and "neither PNG nor JPEG" in error.value


@pytest.mark.parametrize("length", [lines.MAX_TEXT + 1, lines.MAX_LINE + 1, 1_400_000])
def test_an_endless_question_is_one_short_error(tmp_path, length):
    label = lf.put_frame(tmp_path, lines=(*lf.LINES, "What is " + "x" * length + "?|Idle|1, 1, 9, 9"))
    content = read_folder(tmp_path)
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), 4, validation.TOO_LONG)
    assert len(str(error)) < 400 and len(content.samples) == 3


@pytest.mark.parametrize("end", ["csv", "jsonl", "json"])
def test_an_endless_answer_of_a_table(tmp_path, end):
    lf.put_image(tmp_path / "v1/f1.png")
    adapter = f'name = "own"\nimages = "{{sequence}}/{{frame}}.png"\nlabels = "a.{end}"\nformat = "{end}"\n'
    adapter += '[columns]\nsequence = "s"\nframe = "f"\nquestion = "q"\nanswer = "a"\n'
    adapter += '[answers]\ncount = ["1"]\n[questions]\ncount = "how many"\n[splits]\ntrain = ["*"]\n'
    (tmp_path / "a.toml").write_text(adapter)
    long = "1" * 50_000
    rows = [f'{{"s": "v1", "f": "f1", "q": "how many", "a": "{answer}"}}' for answer in ("1", long)]
    text = {
        "csv": f"s,f,q,a\nv1,f1,how many,1\nv1,f1,how many,{long}\n",
        "jsonl": "\n".join(rows),
        "json": "[" + ",\n".join(rows) + "]",
    }[end]
    (tmp_path / f"a.{end}").write_text(text)
    content = read_all(FormatReader(load_format(tmp_path / "a.toml"), tmp_path))
    (error,) = content.errors
    assert (error.line, error.what) == (3 if end == "csv" else 2, validation.TOO_LONG)
    assert "50,000 characters as answer" in error.value and len(content.samples) == 1


def test_a_label_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_BYTES", 1000)
    label = lf.put_frame(tmp_path, lines=lf.LINES * 10)
    (error,) = check_folder(tmp_path).errors
    assert (error.path, error.what) == (str(label), validation.TOO_LONG) and "more than 1,000 bytes" in error.value


def test_csv_that_is_torn_is_an_error_of_its_line(tmp_path):
    lf.put_image(tmp_path / "v1/f1.png")
    adapter = 'name = "own"\nimages = "{sequence}/{frame}.png"\nlabels = "a.csv"\nformat = "csv"\n'
    adapter += '[columns]\nsequence = "s"\nframe = "f"\nquestion = "q"\nanswer = "a"\n'
    adapter += '[answers]\ncount = ["1"]\n[questions]\ncount = "how many"\n[splits]\ntrain = ["*"]\n'
    (tmp_path / "a.toml").write_text(adapter)
    (tmp_path / "a.csv").write_text('s,f,q,a\nv1,f1,how many,1\nv1,f1,"how many,1\n')
    content = read_all(FormatReader(load_format(tmp_path / "a.toml"), tmp_path))
    (error,) = content.errors
    assert error.line == 3 and "not valid CSV" in error.value and len(content.samples) == 1


@pytest.mark.parametrize("disguise", [pipe, device, circle, folder])
def test_records_are_read_from_regular_files(tmp_path, disguise):
    disguise(tmp_path / "surgery_r1.json")
    for read in (read_json, lambda path: list(read_jsonl(path))):
        with pytest.raises(SurgeryR1Error, match=r"surgery_r1\.json: the file cannot be read: "):
            read(tmp_path / "surgery_r1.json")


@pytest.mark.parametrize("disguise", [pipe, circle, dangling, folder])
def test_a_model_whose_record_cannot_be_read_is_no_base_model(tmp_path, disguise):
    disguise(tmp_path / "surgery_r1.json")
    with pytest.raises(SurgeryR1Error, match=r"surgery_r1\.json: (the file cannot be read|no such file)"):
        recorded_info(tmp_path)


def test_a_trainers_checkpoint_away_from_its_run_is_no_base_model(tmp_path):
    assert recorded_info(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(SurgeryR1Error, match=r"trainer's checkpoint without surgery_r1\.json"):
        recorded_info(tmp_path)
