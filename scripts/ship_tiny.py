"""Put a pretrained tiny base into the package, with its surgery_r1.json, log, config and sha256; or what came of it.

    python scripts/ship_tiny.py runs/pretrain scripts/pretrain_tiny.toml
    python scripts/ship_tiny.py --again
    python scripts/ship_tiny.py --rft demo/rft

``--again`` ships the weights that the package has, after a change of the processor in ``models/tiny/architecture.py``;
``--rft`` the best model of a run of the second stage, as ``tiny-rft``.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from surgery_r1._util.files import sha256_file
from surgery_r1.models.load import from_pretrained, weights_sha256
from surgery_r1.models.save import save_description, save_model
from surgery_r1.models.tiny.architecture import BOX_SPACE, MAX_PIXELS, MIN_PIXELS, TINY_BASE, TINY_RFT

DOCS = Path(__file__).parent.parent / "docs"
NOTES = DOCS / "tiny_base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of the pretraining")
    parser.add_argument("config", type=Path, nargs="?", help="its settings")
    parser.add_argument("--checkpoint", default="final")
    parser.add_argument("--again", action="store_true", help="the shipped weights, with the processor of the source")
    parser.add_argument("--rft", type=Path, metavar="RUN", help="a run of RFT, whose best model becomes tiny-rft")
    args = parser.parse_args()
    if (args.config is not None) + args.again + (args.rft is not None) != 1:
        parser.error("give a run and its config, or --again, or --rft RUN")
    if args.rft is not None:
        shutil.copytree(args.rft / "best", TINY_RFT, dirs_exist_ok=True)
        list_sums(TINY_RFT, DOCS / "tiny_rft")
        return
    ship_again(TINY_BASE) if args.again else ship(args.run, args.config, args.checkpoint)
    list_sums(TINY_BASE, NOTES)


def list_sums(shipped: Path, notes: Path) -> None:
    """The sha256 of every file of ``shipped``, beside what is told of it."""
    listing = [f"{sha256_file(path)}  {path.name}" for path in sorted(shipped.iterdir())]
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "SHA256SUMS").write_text("\n".join(listing) + "\n")
    print("\n".join(listing))


def ship(run: Path, config: Path, checkpoint: str) -> None:
    """Model, processor and description of a pretraining, with its log and settings."""
    source = run / checkpoint
    bundle = from_pretrained(source, dtype="float32", box_space=BOX_SPACE, device="cpu")
    info = replace(bundle.info, base_model="tiny", base_sha256=weights_sha256(source))
    save_model(bundle.model, bundle.processor, info, TINY_BASE)
    NOTES.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "log.jsonl", NOTES / "pretrain_log.jsonl")
    shutil.copyfile(config, NOTES / "pretrain_config.toml")


def ship_again(folder: Path) -> None:
    """Processor and description anew, with the pixel limits of the source; the weights stay as they are."""
    bundle = from_pretrained(folder, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, with_model=False)
    save_description(bundle.processor, "qwen2_5_vl", bundle.info, folder)


if __name__ == "__main__":
    main()
