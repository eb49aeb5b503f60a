"""Log-probabilities of shared and plain passes in bfloat16, against float32, at a published model's shape.

    python scripts/make_model_folder.py qwen2_5_vl_3b MODEL
    python scripts/true_shape_log_probs.py MODEL --out docs/true_shapes.json --page docs/true_shapes.md

Two rows on one drawn frame are scored: once as one packed sequence that has the frame once (shared), once each alone
(plain); in bfloat16 and in float32, with the same weights. What sharing adds to the error must lie within what bfloat16
itself costs: the plain pass's distance from float32. One model at a time is in memory, each in a process of its own.
``--max-pixels`` lowers the frame's tokens; ``scripts/make_model_folder.py --layers`` writes fewer layers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from run_true_shapes import machine, make_dataset

from surgery_r1 import prompts
from surgery_r1._util.files import read_json, write_json
from surgery_r1.data.dataset import open_dataset
from surgery_r1.models import from_pretrained
from surgery_r1.models.sharing import attention, prefix_tree
from surgery_r1.models.sharing.vision_features import keep_frozen_features
from surgery_r1.train.datasets import sft_dataset
from surgery_r1.train.sharing.sft_packing import FramePackCollator, pack_rows

DTYPES = ("bfloat16", "float32")
MARKS = "<!-- log-probs -->", "<!-- /log-probs -->"


def rows_of(dataset: Path, processor: Any, space: str, collator: FramePackCollator) -> tuple[list[Any], Any]:
    """Two rows with rationales on the dataset's frame, as tokens, and the frame's patches."""
    rows = sft_dataset(open_dataset(dataset), processor, space, tasks=["cot"])
    pack = pack_rows(rows, per_frame=2).with_format(None)[0]
    image = collator.processor.image_processor(images=pack["images"], return_tensors="pt")
    return collator._rows(pack, 0, image["image_grid_thw"]), image


def targets(hidden: torch.Tensor, head: Any, source: list[int], tokens: list[int]) -> torch.Tensor:
    """Log-probability in float32 of each token, predicted at its place in ``hidden`` (1, N, width)."""
    logits = head(hidden[0, source]).float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


@torch.no_grad()
def score(model: Any, rows: list[Any], image: Any, collator: FramePackCollator, shared: bool) -> torch.Tensor:
    """Log-probabilities of all targets of the rows, in their order."""
    grids, token = image["image_grid_thw"], collator.processor.image_token_id
    groups = [rows] if shared else [[row] for row in rows]
    found = []
    for group in groups:
        tree = prefix_tree.build_prefix_tree(group, token)
        inputs = prefix_tree.tree_inputs(tree, group, [collator.positions(row, grids) for row in group])
        inputs.pop("shift_labels")
        if not shared:
            inputs.pop("tree")
        hidden = model.model(**inputs, **image, use_cache=False).last_hidden_state
        for row, index in zip(group, tree.index, strict=True):
            places = [place for place, label in enumerate(row.labels) if label != prefix_tree.IGNORE]
            source = [int(index[place]) for place in places]
            found.append(targets(hidden, model.lm_head, source, [int(row.labels[place]) for place in places]))
    return torch.cat(found)


def part(args: argparse.Namespace) -> None:
    """Both passes in one precision, written to a file."""
    torch.set_num_threads(args.threads)
    start = time.process_time()
    bundle = from_pretrained(args.model, dtype=args.part, device="cpu", max_pixels=args.max_pixels)
    # As in training: the tower reads the frame once, and both passes have its features.
    keep_frozen_features(bundle.model)
    system = prompts.system_text(bundle.info.box_space)
    collator = FramePackCollator(bundle.processor, system, bundle.model.model.get_rope_index)
    rows, image = rows_of(args.dataset, bundle.processor, bundle.info.box_space, collator)
    plain = score(bundle.model, rows, image, collator, shared=False)
    assert attention.enable(bundle.model)
    shared = score(bundle.model, rows, image, collator, shared=True)
    tokens = {"image": int(image["image_grid_thw"].prod() // 4), "rows": [len(row.ids) for row in rows]}
    layers = bundle.model.config.get_text_config().num_hidden_layers
    facts = {"tokens": tokens, "layers": layers, "cpu_seconds": time.process_time() - start}
    torch.save({"plain": plain, "shared": shared, **facts}, args.out)


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Distances in nats, mean and largest over the targets."""

    def apart(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
        gap = (ours - theirs).abs()
        return {"mean": gap.mean().item(), "largest": gap.max().item()}

    low, exact = found["bfloat16"], found["float32"]
    return {
        "targets": len(exact["plain"]),
        "tokens": exact["tokens"],
        "layers": exact["layers"],
        "mean_log_prob": exact["plain"].mean().item(),
        "plain_bfloat16_from_float32": apart(low["plain"], exact["plain"]),
        "shared_bfloat16_from_float32": apart(low["shared"], exact["plain"]),
        "shared_from_plain_float32": apart(exact["shared"], exact["plain"]),
        "shared_from_plain_bfloat16": apart(low["shared"], low["plain"]),
        "cpu_seconds": {dtype: found[dtype]["cpu_seconds"] for dtype in DTYPES},
    }


def page(result: dict[str, Any]) -> str:
    """The table of the documents."""
    lines = ["| nats | mean | largest |", "|---|---:|---:|"]
    for name, words in (
        ("plain_bfloat16_from_float32", "plain pass, bfloat16 from float32: bfloat16's own error"),
        ("shared_bfloat16_from_float32", "shared pass, bfloat16 from float32"),
        ("shared_from_plain_bfloat16", "shared from plain, both bfloat16"),
        ("shared_from_plain_float32", "shared from plain, both float32"),
    ):
        lines.append(f"| {words} | {result[name]['mean']:.2g} | {result[name]['largest']:.2g} |")
    tokens = result["tokens"]
    rows = " and ".join(map(str, tokens["rows"]))
    return "\n".join(
        [
            *lines,
            "",
            f"{result['date']}, `{result['command']}`: {result['layers']} layers, {result['targets']} targets of two "
            f"rows ({rows} tokens, {tokens['image']} of them of the frame), random weights "
            f"(mean log-probability {result['mean_log_prob']:.1f}).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of scripts/make_model_folder.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON; what it holds of other runs is kept")
    parser.add_argument("--page", type=Path, help="Markdown with the table between its marks")
    parser.add_argument("--max-pixels", type=int, default=1003520)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--part", choices=DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part(args)
        return
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = make_dataset(Path(scratch))
        for dtype in DTYPES:
            out = Path(scratch) / f"{dtype}.pt"
            given = ["--out", str(out), "--max-pixels", str(args.max_pixels), "--threads", str(args.threads)]
            given += ["--part", dtype, "--dataset", str(dataset)]
            subprocess.run([sys.executable, __file__, str(args.model), *given], check=True)
            found[dtype] = torch.load(out)
    command = f"python scripts/true_shape_log_probs.py MODEL --max-pixels {args.max_pixels}"
    facts = {"date": date.today().isoformat(), "command": command, "machine": machine(args.threads)}
    result = {**facts, **compared(found)}
    write_json(args.out, {**(read_json(args.out) if args.out.exists() else {}), "log_probs": result})
    if args.page:
        text = args.page.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        behind = rest.split(MARKS[1])[1]
        args.page.write_text(f"{before}{MARKS[0]}\n{page(result)}\n{MARKS[1]}{behind}", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
