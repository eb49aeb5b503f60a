"""All checks, in the order in which they are made."""

from __future__ import annotations

from surgery_r1.doctor.check import Check
from surgery_r1.doctor.labels import labels
from surgery_r1.doctor.machine import device, disk, memory, versions
from surgery_r1.doctor.reading import box, image_tokens, limits, model, positions
from surgery_r1.doctor.texts import chat_template, longest, reply_tokens
from surgery_r1.doctor.training import lora, options, plan, resume, rewards, sampler
from surgery_r1.errors import SurgeryR1Error

CHECKS: tuple[Check, ...] = (
    versions,
    memory,
    labels,
    options,
    model,
    device,
    chat_template,
    image_tokens,
    positions,
    limits,
    box,
    longest,
    lora,
    sampler,
    reply_tokens,
    rewards,
    resume,
    plan,
    disk,
)


def chosen(names: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks that are named, and those that they need; all of them for no name.

    >>> [check.name for check in chosen(("box",))]
    ['model', 'image_tokens', 'box']

    Raises:
        SurgeryR1Error: for a name that no check has.
    """
    known = {check.name: check for check in CHECKS}
    if wrong := [name for name in names if name not in known]:
        raise SurgeryR1Error(f"no check is called {wrong[0]!r}", fix=f"one of {', '.join(known)}")
    wanted = set(names) or set(known)
    while missing := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= missing
    return tuple(check for check in CHECKS if check.name in wanted)
