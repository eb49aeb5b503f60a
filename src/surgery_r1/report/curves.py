"""Training curves as SVG that stands in the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from surgery_r1.report.inputs import Run

#: Grey that reads on a light and on a dark page.
_INK = "#7b8794"
_COLOURS = ("#2f81f7", "#e8860c", "#2da44e", "#a475f9", "#d1436c", "#0fa3b1", "#8a6d3b", "#7b8794")
_MOST_POINTS = 400

#: Steps whose reward is taken for that of the model at one of them.
_STEPS_BESIDE = 10

#: Panel and series of what a run logs, beside the parts of its reward.
_PLACES = {"loss": ("loss", "loss"), "reward": ("reward", "reward"), "kl": ("KL", "kl")}
_PLACES |= {f"dev/{name}": ("dev", name) for name in ("acc", "miou", "joint", "joint_at_iou50", "f_score")}
_AGREEMENT = ("rationale_right", "rationale_answer", "rationale_contradicts", "answer_box", "wrong_referent_broad")
_PLACES |= {f"dev/{name}": ("agreement on dev", name) for name in _AGREEMENT}

Series = dict[str, list[tuple[float, float]]]


def panels(records: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """What there is to draw: panel title -> series name -> ``(step, value)`` points; only finite numbers.

    Of a step that was logged twice, as by a run that was killed and resumed, the later record counts.
    """
    titles = ("loss", "reward", "reward parts", "KL", "dev", "agreement on dev")
    found: dict[str, dict[str, dict[float, float]]] = {title: {} for title in titles}
    for record in records:
        for key, value in record.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            place = _place(key)
            if place is not None:
                found[place[0]].setdefault(place[1], {})[float(record["step"])] = float(value)
    return {
        title: {name: sorted(points.items()) for name, points in sorted(series.items())}
        for title, series in found.items()
        if series
    }


def _place(key: str) -> tuple[str, str] | None:
    if key.startswith("rewards/") and not key.endswith("/std"):
        return "reward parts", key.removeprefix("rewards/").removesuffix("/mean")
    return _PLACES.get(key)


def agreement_by_reward(found: Mapping[str, Series]) -> Series:
    """Agreement on dev against the reward of the model that was looked at: its mean over the steps beside the look.

    Args:
        found: panels of a run.

    Returns:
        Series name -> ``(reward, rate)`` in the order of the looks; nothing for a run without rewards or looks.

    >>> panels = {"reward": {"reward": [(1, 0.2), (2, 0.4)]}, "agreement on dev": {"answer_box": [(0, 0.9), (2, 0.8)]}}
    >>> [(round(reward, 1), rate) for reward, rate in agreement_by_reward(panels)["answer_box"]]
    [(0.3, 0.9), (0.3, 0.8)]
    """
    rewards = found.get("reward", {}).get("reward", [])
    if not rewards:
        return {}

    def reward_at(step: float) -> float:
        nearest = sorted(rewards, key=lambda point: abs(point[0] - step))[:_STEPS_BESIDE]
        return sum(value for _, value in nearest) / len(nearest)

    looks = found.get("agreement on dev", {})
    return {name: [(reward_at(step), rate) for step, rate in points] for name, points in looks.items()}


def curves_svg(run: Run, salt: str) -> list[str]:
    """The curves of a run, one picture a panel; none where nothing was logged.

    Args:
        salt: makes element ids of several pictures in one page differ; the same input gives the same text.
    """
    found = panels(run.records)
    drawn = [_panel(title, series, f"{salt}-{title}") for title, series in found.items()]
    if by_reward := agreement_by_reward(found):
        drawn.append(_panel("agreement on dev against reward", by_reward, f"{salt}-by-reward", across="reward"))
    return drawn


def _panel(title: str, series: Series, salt: str, across: str = "step") -> str:
    # The object-oriented interface leaves the reader's backend and settings of pyplot alone.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with rc_context(settings):
        legend_rows = -(-len(series) // 2) if len(series) > 1 else 0
        height = 2.6 + 0.19 * legend_rows
        figure = Figure(figsize=(3.8, height), facecolor="none")
        # Fixed margins: matplotlib's layout engines draw everything twice.
        figure.subplots_adjust(
            left=0.13, right=0.98, top=1 - 0.28 / height, bottom=(0.48 + 0.19 * legend_rows) / height
        )
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), title, series, across)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    # The page sets the size; the view box keeps the proportions.
    opening, rest = svg.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", opening).replace("<svg", '<svg role="img"', 1) + ">" + rest


def _draw(axis: Any, title: str, series: Series, across: str) -> None:
    for colour, (name, points) in zip(cycle(_COLOURS), series.items(), strict=False):
        points = points[:: -(-len(points) // _MOST_POINTS)]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        smooth = _moving_mean(values)
        if smooth is None:
            axis.plot(steps, values, color=colour, lw=1.6, marker="o" if len(points) < 40 else None, ms=3, label=name)
        else:
            axis.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
            axis.plot(steps, smooth, color=colour, lw=1.8, label=name)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(across)
    # Rewards lie close together and have long numbers.
    axis.locator_params(axis="x", nbins=7 if across == "step" else 4)
    axis.grid(alpha=0.2)
    axis.patch.set_alpha(0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.2))


def _moving_mean(values: Sequence[float]) -> list[float] | None:
    """Mean over a trailing twentieth of the points, for series too long to be read raw."""
    if len(values) < 40:
        return None
    window = len(values) // 20
    return [
        sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1]) for i in range(len(values))
    ]
