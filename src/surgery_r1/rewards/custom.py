"""Rewards of one's own, by ``path.py:function``: loaded, and tried out before anything is trained on them."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from surgery_r1._util.files import sha256_file
from surgery_r1.codec import View, render
from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.records import AnnotatedObject
from surgery_r1.rewards.truth import Truth

#: A reward: (text of the reply, truth) -> number in [0, 1], or None where it does not apply.
Reward = Callable[[str, Truth], float | None]

_FIX = "a reward is a function (text, truth) that returns a number in [0, 1], or None where it does not apply"


def is_custom(name: str) -> bool:
    """Whether the name of a reward says where a function lies.

    >>> is_custom("rewards/mine.py:short_rationale"), is_custom("coherence")
    (True, False)
    """
    return ".py:" in name


def short_name(name: str) -> str:
    """What logs call a reward: the function's name for one of one's own.

    >>> short_name("rewards/mine.py:short_rationale"), short_name("coherence")
    ('short_rationale', 'coherence')
    """
    return name.rpartition(":")[2]


@functools.lru_cache(maxsize=64)
def load_reward(name: str) -> Reward:
    """The function of ``path.py:function``; what it returns is checked at every call.

    The path is relative to the folder in which the command runs. The file is run, as any Python that is imported.

    Raises:
        SurgeryR1Error: with the path, when the file cannot be imported, has no such function, the function takes other
            arguments, or returns NaN or a number outside [0, 1] for one of some replies that it is tried on.
    """
    path, _, function = name.rpartition(":")
    reward = getattr(_module(Path(path)), function, None)
    if not callable(reward):
        raise SurgeryR1Error(f"no function {function!r} here", where=path, fix=f"define it: {_FIX}")
    try:
        inspect.signature(reward).bind("text", "truth")
    except TypeError as error:
        what, code = f"{function} cannot be called with (text, truth): {error}", getattr(reward, "__code__", None)
        where = f"{path}:{code.co_firstlineno}" if code else path
        raise SurgeryR1Error(what, where=where, fix=_FIX) from None

    @functools.wraps(reward)
    def checked(text: str, truth: Truth) -> float | None:
        value = reward(text, truth)
        # Not so for NaN either, of which no comparison is true.
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise SurgeryR1Error(f"{function} returned {value!r} for the reply {text[:80]!r}", where=path, fix=_FIX)
        return None if value is None else float(value)

    _try_out(checked, path, function)
    return checked


def reward_files(names: Iterable[str]) -> dict[str, str]:
    """sha256 of the file of each reward of one's own, for the record of a run."""
    return {name: sha256_file(Path(name.rpartition(":")[0])) for name in names if is_custom(name)}


def _module(path: Path) -> Any:
    if not path.is_file():
        raise SurgeryR1Error("no such file with a reward", where=path, fix="check the path in [rft] rewards")
    spec = importlib.util.spec_from_file_location(f"surgery_r1_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with explained("cannot be imported", where=path, fix="correct the file"):
        spec.loader.exec_module(module)
    return module


def _try_out(reward: Reward, path: str, function: str) -> None:
    """Call it on sound and on broken replies to one question of each task."""
    for task in ("cot", "visual_qa", "grounding_qa"):
        truth = _example(task)
        parts = truth.parts
        sound = render(
            "it is seen in the left-top" if parts["reasoning"] else None,
            "left-top" if parts["answer"] else None,
            (10, 10, 40, 40) if parts["box"] else None,
        )
        replies = (sound, "", "<think>", "left-top", sound * 2, "<answer>Idle</answer><box>[40, 40, 10, 10]</box>")
        with explained(f"{function} failed on an example", where=path, fix="correct it"):
            applies = {reward(reply, truth) is not None for reply in replies}
        if len(applies) > 1:
            raise SurgeryR1Error(
                f"{function} returns None for some replies to a question and numbers for others",
                where=path,
                fix="whether a reward applies may depend on the question alone: else a reply could escape a low one",
            )


def _example(task: str) -> Truth:
    box = (32.0, 26.0, 128.0, 102.0)
    return Truth(
        sample_id="example/seq_2/frame000/0",
        task=task,
        reasoning=task == "cot",
        kind="location",
        subject="bipolar_forceps",
        accepted=(("left-top", box),),
        width=320,
        height=256,
        objects=(
            AnnotatedObject("kidney", None, None, (10.0, 10.0, 310.0, 246.0)),
            AnnotatedObject("bipolar_forceps", "Idle", "left-top", box),
            AnnotatedObject("suction", "Suction", "right-bottom", (200.0, 150.0, 300.0, 240.0)),
        ),
        location_rule="image-normal",
        agreement=1.0,
        view=View(320, 256, 168, 140),
        box_space="norm100",
    )
