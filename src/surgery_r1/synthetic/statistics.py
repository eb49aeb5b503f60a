"""Which tools are where and do what, frame by frame: the real label statistics, replayed.

Train replays the counted facts of the real training frames block by block. Val and the cross-set sample from those
blocks, seeded, to the exact counts of the real sets. Positions and pictures are made up elsewhere.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1.synthetic.scene import seeded

Record = tuple[tuple[str, str, str], ...]

TABLE = Path(__file__).with_name("train_facts.tsv")

#: Val sequence -> blocks it mimics (named by training sequence) and its number of tool instances (1,161 in all).
VAL_MIX: dict[int, tuple[tuple[int, ...], int]] = {1: ((2, 6), 384), 5: ((3, 4, 7), 424), 16: ((7, 14, 15), 353)}
VAL_FRAMES = 149

#: Cross-set: frames of each sequence (97 in all), and tool instances (236 in all).
CROSS_FRAMES: dict[int, int] = {1: 14, 2: 11, 3: 9, 4: 13, 5: 7, 6: 10, 7: 6, 8: 8, 9: 15, 10: 4}
CROSS_INSTANCES = 236


def encode(record: Record) -> str:
    """A record as the fact table writes it.

    >>> encode((("bipolar_forceps", "Idle", "left-top"), ("suction", "Suction", "right-bottom")))
    '0a0 3h3'
    """
    return " ".join(
        f"{vocab.TOOLS.index(tool)}{chr(97 + vocab.STATES.index(state))}{vocab.LOCATIONS.index(location)}"
        for tool, state, location in record
    )


def decode(text: str) -> Record:
    """The inverse of ``encode``."""
    labels = text.split()
    return tuple((vocab.TOOLS[int(x[0])], vocab.STATES[ord(x[1]) - 97], vocab.LOCATIONS[int(x[2])]) for x in labels)


@lru_cache(maxsize=1)
def _blocks() -> dict[int, list[Record]]:
    """Records of each training sequence, as often as they occur."""
    blocks: dict[int, list[Record]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            sequence, count, labels = line.split("\t")
            blocks.setdefault(int(sequence), []).extend([decode(labels)] * int(count))
    return blocks


def _distance(a: Record, b: Record) -> int:
    """How much changes on screen between two frames: a tool that comes, goes or jumps weighs more than a new state."""
    places_a, places_b = {(t, p) for t, _, p in a}, {(t, p) for t, _, p in b}
    return 4 * len(places_a ^ places_b) + len(set(a) ^ set(b))


def _chain(frames: list[Record], rng: random.Random) -> list[Record]:
    """Frames re-ordered so that neighbours are alike, in runs of at most about 24 of one record."""
    left = Counter(frames)
    order = sorted(left)
    now = order[rng.randrange(len(order))]
    chain: list[Record] = []
    while left:
        run = min(left[now], rng.randint(8, 24))
        chain += [now] * run
        left[now] -= run
        if not left[now]:
            del left[now]
        rest = [r for r in sorted(left) if r != now] or sorted(left)
        if rest:
            now = min(rest, key=lambda r: (_distance(now, r), r))
    return chain


def _draw(blocks: tuple[int, ...], frames: int, instances: int, rng: random.Random) -> list[Record]:
    """``frames`` records that hold ``instances`` tools, in the proportions of ``blocks`` (named by sequence).

    Every k-th record of the sorted pool is taken, so that rare tools and states stay in; then records are swapped
    for others of the pool until the number of tools is met.
    """
    pool = sorted(record for b in blocks for record in _blocks()[b])
    step, start = len(pool) / frames, rng.random()
    chosen = [pool[min(len(pool) - 1, int((i + start) * step))] for i in range(frames)]
    seen = Counter(label[:2] for record in chosen for label in record)
    total = sum(map(len, chosen))
    for attempt in range(100_000):
        if total == instances:
            return chosen
        i, new = rng.randrange(frames), rng.choice(pool)
        change = len(new) - len(chosen[i])
        # Rare pairs are kept as long as that leaves anything to swap (in a short sequence all are rare).
        rare = attempt < 2000 and any(seen[label[:2]] < 3 for label in chosen[i])
        if change and not rare and abs(total + change - instances) < abs(total - instances):
            seen.subtract(label[:2] for label in chosen[i])
            seen.update(label[:2] for label in new)
            chosen[i], total = new, total + change
    raise RuntimeError(f"no {frames} records of blocks {blocks} hold {instances} tools")


def train_records(sequence: int, seed: int = 0) -> list[Record]:
    """Records of an official training sequence in frame order; the labels do not depend on ``seed``, the order does."""
    return _chain(_blocks()[sequence], seeded("train order", seed, sequence))


def val_records(sequence: int, seed: int = 0) -> list[Record]:
    """149 records of an official val sequence in frame order."""
    blocks, instances = VAL_MIX[sequence]
    rng = seeded("val records", seed, sequence)
    return _chain(_draw(blocks, VAL_FRAMES, instances, rng), rng)


def cross_records(seed: int = 0) -> dict[int, list[Record]]:
    """The 97 cross-set records by sequence: other mixtures of tools than train, three blocks a sequence."""
    rng = seeded("cross records", seed)
    left_frames, left_tools = sum(CROSS_FRAMES.values()), CROSS_INSTANCES
    out = {}
    for sequence, frames in CROSS_FRAMES.items():
        tools = left_tools if frames == left_frames else round(left_tools * frames / left_frames)
        # Blocks in turn, so that each is used and the rare tools of a few sequences are met.
        blocks = tuple(vocab.TRAIN_SEQUENCES[(sequence + k) % 11] for k in (0, 3, 7))
        out[sequence] = _chain(_draw(blocks, frames, tools, rng), rng)
        left_frames, left_tools = left_frames - frames, left_tools - tools
    return out


def sequence_records(domain: int, seed: int = 0) -> dict[int, list[Record]]:
    """All records of a domain (18 or 17), by sequence number, in frame order."""
    if domain == 17:
        return cross_records(seed)
    out = {s: train_records(s, seed) for s in vocab.TRAIN_SEQUENCES}
    out.update({s: val_records(s, seed) for s in vocab.VAL_SEQUENCES})
    return out
