"""Where things are: single poses by rejection, and smooth motion of a whole sequence."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from surgery_r1.synthetic.boxes import clearance, tool_box
from surgery_r1.synthetic.scene import FramePlan, KidneyPose, ToolPose, seeded
from surgery_r1.synthetic.style import Style

#: A box centre stays this far from the image's middle lines (frame heights), so rounding cannot flip a label.
CLEAR = 0.03
#: Tips (with their cues) keep this distance from each other where there is room, and this one from other shafts.
TIP_GAP, SHAFT_GAP = 0.33, 0.20
#: Frames between two key poses of a moving tool.
KEY = 16

Record = Sequence[tuple[str, str, str]]


def _propose(rng: random.Random, location: str, aspect: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """A random entry and tip that could carry the label: from a border of that half, at a hand-like angle."""
    left, top = location.startswith("left"), location.endswith("top")
    while True:
        if rng.random() < 0.62:
            entry = (0.0 if left else aspect, rng.uniform(0.02, 0.98))
            steep, forward = 1.3, 0
        else:
            entry = (rng.uniform(0.02, 0.98) * aspect, 0.0 if top else 1.0)
            steep, forward = 1.1, 1
        tip = (rng.uniform(0.15, aspect - 0.15), rng.uniform(0.15, 0.85))
        dx, dy = abs(tip[0] - entry[0]), abs(tip[1] - entry[1])
        along, across = (dx, dy) if forward == 0 else (dy, dx)
        if not 0.26 < math.hypot(dx, dy) < 0.98 or across > steep * along:
            continue
        # The box is roughly the one spanned by entry and tip, a jaw wider: a cheap first test.
        pad = 0.06
        box = (
            max(0.0, min(entry[0], tip[0]) - pad),
            max(0.0, min(entry[1], tip[1]) - pad),
            min(aspect, max(entry[0], tip[0]) + pad),
            min(1.0, max(entry[1], tip[1]) + pad),
        )
        if clearance(box, location, aspect) > 0.01:
            return entry, tip


def _to_segment(p, a, b) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / max(1e-9, dx * dx + dy * dy)
    t = min(1.0, max(0.0, t))
    return math.hypot(p[0] - a[0] - t * dx, p[1] - a[1] - t * dy)


def _crosses(a, b, c, d) -> bool:
    def turn(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]) > 0

    return turn(a, b, c) != turn(a, b, d) and turn(c, d, a) != turn(c, d, b)


def _crowding(entry, tip, others: Sequence[ToolPose]) -> float:
    """0 where a tool is well apart from the others, growing with overlap."""
    cost = 0.0
    for other in others:
        cost += 2.0 * max(0.0, TIP_GAP - math.hypot(tip[0] - other.tip[0], tip[1] - other.tip[1])) / TIP_GAP
        cost += max(0.0, SHAFT_GAP - _to_segment(tip, other.entry, other.tip)) / SHAFT_GAP
        cost += max(0.0, SHAFT_GAP - _to_segment(other.tip, entry, tip)) / SHAFT_GAP
        cost += 0.8 * _crosses(entry, tip, other.entry, other.tip)
        cost += max(0.0, 0.12 - math.hypot(entry[0] - other.entry[0], entry[1] - other.entry[1])) * 4
    return cost


def _fits(pose: ToolPose, aspect: float, circle: float | None) -> bool:
    box = tool_box(pose, aspect, circle)
    return box is not None and clearance(box, pose.location, aspect) >= CLEAR


def place_tool(
    rng: random.Random, name: str, state: str, location: str, others: Sequence[ToolPose], aspect: float, style: Style
) -> ToolPose:
    """A pose whose box carries ``location`` by a clear margin, as far from ``others`` as the frame allows."""
    best, least = None, math.inf
    look = rng.getrandbits(30)
    for attempt in range(300):
        entry, tip = _propose(rng, location, aspect)
        if style.circle is not None and math.hypot(tip[0] - aspect / 2, tip[1] - 0.5) > style.circle - 0.17:
            continue
        cost = _crowding(entry, tip, others)
        if cost < least:
            pose = ToolPose(name, state, location, entry, tip, rng.uniform(-0.4, 0.4), style.zoom, look)
            if _fits(pose, aspect, style.circle):
                best, least = pose, cost
        if best is not None and (least == 0 or (attempt > 40 and least < 0.15) or attempt > 120):
            break
    if best is None:  # pragma: no cover - 400 proposals always held one in tests of every size
        raise RuntimeError(f"no room for {name} at {location}")
    return best


def _place_all(
    rng: random.Random, record: Record, others: Sequence[ToolPose], aspect: float, style: Style
) -> list[ToolPose]:
    """Poses for all labels of a record, one after the other, apart from ``others``."""
    placed: list[ToolPose] = []
    for label in record:
        placed.append(place_tool(rng, *label, others=[*others, *placed], aspect=aspect, style=style))
    return placed


def place_kidney(rng: random.Random, aspect: float) -> KidneyPose:
    """The organ, anywhere plausible, at most a part of it outside the frame."""
    long = rng.uniform(0.24, 0.42)
    return KidneyPose(
        centre=(rng.uniform(0.22, aspect - 0.22), rng.uniform(0.22, 0.78)),
        radii=(long, long * rng.uniform(0.55, 0.75)),
        turn=rng.uniform(0, math.pi),
        bend=rng.uniform(0.15, 0.42),
    )


def plan_random(rng: random.Random, aspect: float, style: Style, record: Record) -> FramePlan:
    """One frame on its own for ``record``, a list of (tool, state, location)."""
    best: list[ToolPose] = []
    least = math.inf
    for _ in range(3):
        tools = _place_all(rng, record, [], aspect, style)
        cost = _total_crowding(tools)
        if cost < least:
            best, least = tools, cost
        if least < 0.4:
            break
    return FramePlan(tuple(best), place_kidney(rng, aspect), grain=rng.getrandbits(30))


def _glide(a: ToolPose, b: ToolPose, t: float) -> ToolPose:
    t = t * t * (3 - 2 * t)

    def mix(p, q):
        return (p[0] + (q[0] - p[0]) * t, p[1] + (q[1] - p[1]) * t)

    return replace(a, entry=mix(a.entry, b.entry), tip=mix(a.tip, b.tip), bend=a.bend + (b.bend - a.bend) * t)


def _settle(start: ToolPose, end: ToolPose, t: float, state: str, aspect: float, circle) -> ToolPose | None:
    """Where a tool is at ``t`` of its way, or the nearest place on it whose box still carries the label."""
    for step in (0.0, 0.05, -0.05, 0.1, -0.1, 0.2, -0.2, 0.4, -0.4, 0.8, -0.8):
        now = replace(_glide(start, end, min(1.0, max(0.0, t + step))), state=state)
        if _fits(now, aspect, circle):
            return now
    return None


def _nearby(rng: random.Random, pose: ToolPose, aspect: float):
    """Entry and tip a hand's move away from those of ``pose``, on the same border."""
    slide = rng.uniform(-0.12, 0.12)
    on_side = pose.entry[0] in (0.0, aspect)
    entry = (pose.entry[0], pose.entry[1] + slide) if on_side else (pose.entry[0] + slide, pose.entry[1])
    angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.06, 0.22)
    tip = (pose.tip[0] + reach * math.cos(angle), pose.tip[1] + reach * math.sin(angle))
    free = 0.15 <= tip[0] <= aspect - 0.15 and 0.15 <= tip[1] <= 0.85
    free = free and 0.0 <= entry[0] <= aspect and 0.0 <= entry[1] <= 1.0
    return (entry, tip) if free and 0.26 < math.hypot(tip[0] - entry[0], tip[1] - entry[1]) < 0.98 else None


def _same_border(a: ToolPose, b: ToolPose, aspect: float) -> bool:
    return any(
        abs(a.entry[axis] - edge) < 1e-9 and abs(b.entry[axis] - edge) < 1e-9
        for axis, edge in ((0, 0.0), (0, aspect), (1, 0.0), (1, 1.0))
    )


def _next_key(rng, pose: ToolPose, others, aspect: float, style: Style) -> ToolPose:
    """Where a tool moves next: a free place of the same quarter and border not too far away."""
    best, least = pose, _crowding(pose.entry, pose.tip, others) + 0.2
    for attempt in range(24):
        place = _nearby(rng, pose, aspect) if attempt % 3 else _propose(rng, pose.location, aspect)
        if place is None:
            continue
        entry, tip = place
        reach = math.hypot(tip[0] - pose.tip[0], tip[1] - pose.tip[1])
        cost = _crowding(entry, tip, others) + max(0.0, reach - 0.35)
        if style.circle is not None and math.hypot(tip[0] - aspect / 2, tip[1] - 0.5) > style.circle - 0.17:
            continue
        if cost >= least:
            continue
        candidate = replace(pose, entry=entry, tip=tip, bend=rng.uniform(-0.4, 0.4))
        if not _same_border(pose, candidate, aspect):
            continue
        if all(_fits(_glide(pose, candidate, t), aspect, style.circle) for t in (0.25, 0.5, 0.75, 1.0)):
            best, least = candidate, cost
    return best


def _total_crowding(tools: Sequence[ToolPose]) -> float:
    return sum(_crowding(t.entry, t.tip, tools[i + 1 :]) for i, t in enumerate(tools))


def _welcome(rng, record: Record, moving: dict, now: int, aspect: float, style: Style) -> None:
    """Place the tools of ``record`` that are new to ``moving``; if that is a squeeze, place all of them anew."""
    new = [label for label in record if label[0] not in moving]
    if not new:
        return
    ends = [pose for m in moving.values() for pose in set(m[:2])]
    placed = _place_all(rng, new, ends, aspect, style)
    least = _total_crowding([*ends, *placed]) - _total_crowding(ends)
    for _ in range(4):
        if least < 0.35:
            break
        fresh = _place_all(rng, rng.sample(list(record), len(record)), [], aspect, style)
        cost = _total_crowding(fresh)
        if cost < least:
            placed, least = fresh, cost
    for pose in placed:
        moving[pose.name] = (pose, pose, now, now + 1)


def plan_sequence(records: Sequence[Record], aspect: float, style: Style, *seed: object) -> list[FramePlan]:
    """Frames of one sequence: tools glide between key poses, and are placed anew when their label jumps."""
    rng = seeded("motion", *seed)
    kidney = place_kidney(rng, aspect)
    sway = [rng.uniform(0, 6.28) for _ in range(4)]
    moving: dict[str, tuple[ToolPose, ToolPose, int, int]] = {}
    plans = []
    for i, record in enumerate(records):
        wanted = {name: location for name, _, location in record}
        moving = {n: m for n, m in moving.items() if wanted.get(n) == m[0].location}
        _welcome(rng, record, moving, i, aspect, style)
        tools = []
        for name, state, _ in record:
            ends = [pose for n, m in moving.items() if n != name for pose in set(m[:2])]
            start, end, first, last = moving[name]
            if i >= last:
                goal = _next_key(rng, end, ends, aspect, style)
                moving[name] = start, end, first, last = end, goal, i, i + rng.randint(KEY // 2, KEY)
            now = _settle(start, end, (i - first) / (last - first), state, aspect, style.circle)
            if now is None:  # seldom: jaws that open with the state leave no place on the way
                now = place_tool(rng, name, state, start.location, ends, aspect, style)
                moving[name] = (now, now, i, i + 1)
            tools.append(now)
        t = i / 40
        drift = (0.05 * math.sin(t + sway[0]) + 0.015 * math.sin(3.1 * t + sway[1]), 0.05 * math.sin(0.8 * t + sway[2]))
        bean = replace(
            kidney,
            centre=(kidney.centre[0] + drift[0], kidney.centre[1] + drift[1]),
            turn=kidney.turn + 0.05 * math.sin(t + sway[3]),
        )
        plans.append(FramePlan(tuple(tools), bean, drift, rng.getrandbits(30)))
    return plans
