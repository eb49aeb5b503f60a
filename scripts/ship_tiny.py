"""Put a pretrained tiny base into the package, with its surgery_r1.json, log, config and sha256.

python scripts/ship_tiny.py runs/pretrain scripts/pretrain_tiny.toml
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from surgery_r1._util.files import sha256_file
from surgery_r1.models.load import from_pretrained, weights_sha256
from surgery_r1.models.save import save_model
from surgery_r1.models.tiny.architecture import BOX_SPACE, TINY_BASE

NOTES = Path(__file__).parent.parent / "docs" / "tiny_base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--checkpoint", default="final")
    args = parser.parse_args()
    source = args.run / args.checkpoint
    bundle = from_pretrained(source, dtype="float32", box_space=BOX_SPACE, device="cpu")
    from dataclasses import replace

    info = replace(bundle.info, base_model="tiny", base_sha256=weights_sha256(source))
    save_model(bundle.model, bundle.processor, info, TINY_BASE)
    NOTES.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.run / "log.jsonl", NOTES / "pretrain_log.jsonl")
    shutil.copyfile(args.config, NOTES / "pretrain_config.toml")
    listing = [f"{sha256_file(path)}  {path.name}" for path in sorted(TINY_BASE.iterdir())]
    (NOTES / "SHA256SUMS").write_text("\n".join(listing) + "\n")
    print("\n".join(listing))


if __name__ == "__main__":
    main()
