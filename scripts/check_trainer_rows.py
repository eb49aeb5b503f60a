"""Read rows that ``data export --for`` wrote with the trainer's own loader.

    surgery-r1 data export DATASET --out ROWS --for verl --model tiny
    python scripts/check_trainer_rows.py verl ROWS

It runs where that trainer is installed (ms-swift or verl), with this package beside it: they pin other versions than
this project does, so neither is part of ``make setup``. The rows of TRL are trained on by ``tests/test_export.py``.
"""

import argparse
import json
import tempfile
from pathlib import Path

from surgery_r1.rewards import Truth


def ms_swift(rows: Path) -> dict[str, int]:
    """Rows by stage as ``swift sft`` and ``swift rlhf`` load them; strict: a row that does not fit is an error."""
    from swift.dataset import load_dataset

    counts = {}
    for stage in ("sft", "rft"):
        file = str(rows / stage / "train.jsonl")
        loaded, _ = load_dataset(file, strict=True, remove_unused_columns=stage == "sft", load_from_cache_file=False)
        for row in loaded:
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["system", "user", "assistant"][: 3 if stage == "sft" else 2], roles
            assert row["messages"][1]["content"].startswith("<image>") and len(row["images"]) == 1
            assert (rows / row["images"][0]["path"]).is_file(), row["images"]
            assert stage == "sft" or Truth.from_json(row["truth"]).sample_id == row["id"]
        counts[stage] = len(loaded)
    return counts


def verl(rows: Path) -> dict[str, int]:
    """Questions as verl's RL trainers load them."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from surgery_r1.models import from_pretrained

    model = from_pretrained("tiny", with_model=False)
    with tempfile.TemporaryDirectory() as cache:
        config = OmegaConf.create({"cache_dir": cache, "filter_overlong_prompts": False})
        file = str(rows / "rft" / "train.parquet")
        loaded = RLHFDataset(file, model.tokenizer, config, processor=model.processor)
        for row in (loaded[i] for i in range(len(loaded))):
            system, user = row["raw_prompt"]
            assert (system["role"], [part["type"] for part in user["content"]]) == ("system", ["image", "text"])
            assert Truth.from_json(row["reward_model"]["ground_truth"]).sample_id == row["extra_info"]["id"]
        return {"rft": len(loaded)}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("trainer", choices=["ms-swift", "verl"])
parser.add_argument("rows", type=Path)
arguments = parser.parse_args()
print(json.dumps({"ms-swift": ms_swift, "verl": verl}[arguments.trainer](arguments.rows)))
