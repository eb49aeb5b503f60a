"""Why models point at the wrong object and reason against their own answer: the counts behind docs/causes.md.

    python scripts/count_causes.py --data DATASET --model sft=RUN --model rft=RUN --out docs/causes.json
    python scripts/count_causes.py --data DATASET --out overlaps.json   # how much objects overlap, alone

Of each model the same training questions are asked about frames as they are and mirrored, and those of dev. Then groups
of replies are sampled for mirrored training questions, as RFT samples them, and rewarded as ``--config`` says.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery_r1 import codec
from surgery_r1._util.files import write_json
from surgery_r1.data.dataset import Dataset, open_dataset
from surgery_r1.data.mirroring import flip_image
from surgery_r1.data.oversampling import is_tangled
from surgery_r1.data.rationales.checks import SourceWords
from surgery_r1.data.rationales.claims import conclusion
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.matching import Referent, match, referent
from surgery_r1.models import Bundle, from_pretrained
from surgery_r1.models.encode import MemoryImage, Prompt, load_image
from surgery_r1.records import Sample
from surgery_r1.rewards import Mixture, Truth, reward_named
from surgery_r1.train.config import load_config
from surgery_r1.train.datasets import rft_question

MIRRORS = ("horizontal", "vertical", "both")
SPLITS = ("train", "dev", "val")


@dataclass(frozen=True)
class Asked:
    """A question about a frame as it is or in a mirror, as RFT asks it."""

    prompt: Prompt
    truth: Truth


def questions(dataset: Dataset, bundle: Bundle, samples: Sequence[Sample], flips: Sequence[str]) -> list[Asked]:
    """``samples`` in each of ``flips``, those of a frame one after the other."""
    images: dict[tuple[str, str], MemoryImage] = {}
    found = []
    for flip in flips:
        for sample in samples:
            key = sample.image, flip
            if key not in images:
                images[key] = MemoryImage(flip_image(load_image(dataset.image_path(sample)), flip))
            row = rft_question(dataset, sample, bundle.processor, bundle.info.box_space, flip=flip)
            prompt = Prompt((images[key],), row["prompt"][-1]["content"])
            found.append(Asked(prompt, Truth.from_json(row["truth"])))
    return found


def replies(engine: TransformersEngine, asked: Sequence[Asked], *, sampled: bool = False) -> list[str]:
    return [one.text for batch in engine.write([each.prompt for each in asked], sampled=sampled) for one in batch]


def concluded(text: str, truth: Truth) -> tuple[str | None, str | None]:
    """What a reply's rationale ends at, and its answer."""
    reading = codec.read_reply(text, truth.box_space, truth.view)
    words = SourceWords(dict(truth.classes))
    said = reading.rationale and conclusion(reading.rationale, truth.kind, words, truth.trusted_rule)
    return said or None, reading.answer


def counts(asked: Sequence[Asked], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Answers right, wrong referents of tools and organs, rationales against the answer: a share of its n each."""
    rows: dict[str, list[bool]] = {"right": [], "wrong_tools": [], "wrong_organs": [], "contradicts": []}
    for each, text in zip(asked, texts, strict=True):
        truth = each.truth
        reading = codec.read_reply(text, truth.box_space, truth.view)
        rows["right"].append(match(reading, truth.accepted).answer_right)
        found = referent(reading.box_px, truth, truth.objects)
        if found is not None:
            kind = "wrong_organs" if truth.kind == "organ" else "wrong_tools"
            rows[kind].append(found in (Referent.OTHER, Referent.OTHER_CLEARLY))
        said, answer = concluded(text, truth)
        if said is not None and answer is not None:
            rows["contradicts"].append(said != answer)
    return {name: {"share": float(np.mean(hits)), "n": len(hits)} for name, hits in rows.items() if hits}


def groups(asked: Sequence[Asked], texts: Sequence[str], mixture: Mixture, size: int) -> dict[str, Any]:
    """How much of each reward's groups could teach anything, and what false rationales earn.

    Advantages are those of ``normalize_then_sum``: rewards standardised in their group, weighted, summed. A reply's
    advantage goes to all of its tokens.
    """
    weights = dict(zip(mixture.names, mixture.weights_normalised, strict=True))
    flat: dict[str, list[bool]] = {name: [] for name in weights}
    false: list[float] = []
    true: list[float] = []
    mixed = 0
    for start in range(0, len(asked), size):
        truth = asked[start].truth
        own = texts[start : start + size]
        total = np.zeros(size)
        for name, weight in weights.items():
            values = [reward_named(name)(text, truth) for text in own]
            if None in values:
                continue
            scores = np.array(values, float)
            flat[name].append(bool(scores.std() < 1e-6))
            total += weight * (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
        accepted = {answer for answer, _ in truth.accepted}
        ends = [concluded(text, truth)[0] in accepted for text in own]
        mixed += len(set(ends)) == 2
        if len(set(ends)) == 2:
            false += [float(t) for t, right in zip(total, ends, strict=True) if not right]
            true += [float(t) for t, right in zip(total, ends, strict=True) if right]
    number = len(asked) // size
    return {
        "groups": number,
        "flat": {name: {"share": float(np.mean(hits)), "n": len(hits)} for name, hits in flat.items() if hits},
        "mixed_rationales": mixed,
        "false_rationales": len(false),
        "false_with_positive_advantage": float(np.mean(np.array(false) > 0)) if false else None,
        "true_with_positive_advantage": float(np.mean(np.array(true) > 0)) if true else None,
    }


def overlaps(dataset: Dataset) -> dict[str, dict[str, dict[str, float]]]:
    """Share of questions about an object whose box overlaps another's by .3 or more, by split: tools, organs, all."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS:
        hits: dict[str, list[bool]] = {}
        for sample in dataset.split(split):
            if sample.box_px is not None:
                tangled = is_tangled(sample, dataset.frame_of(sample))
                for group in ("organs" if sample.kind == "organ" else "tools", "all"):
                    hits.setdefault(group, []).append(tangled)
        found[split] = {group: {"share": float(np.mean(of)), "n": len(of)} for group, of in hits.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=RUN")
    parser.add_argument("--config", default="tiny", help="whose [rft] rewards and flips are taken")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config, tuple(arguments.set))
    dataset = open_dataset(arguments.data)
    rng = random.Random(arguments.seed)
    train, dev = dataset.split("train"), dataset.split("dev")
    chosen = sorted(rng.sample(train, min(arguments.questions, len(train))), key=lambda sample: sample.id)
    some = sorted(rng.sample(train, min(arguments.groups, len(train))), key=lambda sample: sample.id)
    options = GenerationOptions(config.eval.batch_size, config.eval.max_new_tokens)
    found: dict[str, Any] = {"dataset_sha256": dataset.hash, "rewards": config.rft.rewards, "seed": arguments.seed}
    found |= {"overlaps": overlaps(dataset), "models": {}}
    write_json(arguments.out, found)
    for name, _, folder in (model.partition("=") for model in arguments.model):
        bundle = from_pretrained(folder)
        engine = TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, options)
        told: dict[str, Any] = {}
        for label, samples, flips in (
            ("train, as it is", chosen, ["none"]),
            ("train, mirrored", chosen, list(MIRRORS)),
            ("dev", dev, ["none"]),
        ):
            asked = questions(dataset, bundle, samples, flips)
            told[label] = counts(asked, replies(engine, asked))
        torch.manual_seed(arguments.seed)
        size = config.rft.generations
        asked = [each for each in questions(dataset, bundle, some, ["horizontal"]) for _ in range(size)]
        told["groups"] = groups(asked, replies(engine, asked, sampled=True), Mixture(config.rft.rewards), size)
        found["models"][name] = told
        write_json(arguments.out, found)
        print(name, told)


if __name__ == "__main__":
    main()
