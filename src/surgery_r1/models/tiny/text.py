"""All text that the tiny base is pretrained on: generic grounding and description, never a VQLA question.

The tokenizer is trained on :func:`corpus` and frozen; the replies use the codec's tags, but never an answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from surgery_r1 import codec, vocab
from surgery_r1.geometry import Box

#: What a person sees at the tip of a tool in each state, in words that are not the state's name.
CUES: dict[str, str] = {
    "Idle": "closed jaws that touch nothing",
    "Grasping": "jaws closed on a fold of tissue",
    "Retraction": "tissue pulled into a tent",
    "Tissue_Manipulation": "open jaws that push a dimple",
    "Tool_Manipulation": "a piece of metal held in the jaws",
    "Cutting": "blades with a dark red cut",
    "Cauterization": "smoke and a burnt spot",
    "Suction": "a pool of fluid that is drawn in",
    "Looping": "a loop of thread",
    "Suturing": "a curved needle with stitches",
    "Clipping": "a metal clip on a vessel",
    "Staple": "a row of metal staples",
    "Ultrasound_Sensing": "rings that spread from the tip",
}

PLACES: dict[str, str] = dict(
    zip(vocab.LOCATIONS, ("upper left", "upper right", "lower left", "lower right"), strict=True)
)

#: Ways to ask for a box and for a description. Many, so that what is learned hangs on the name, not on its place.
DETECT = (
    "Detect the {}.",
    "Find the {} in this frame.",
    "Point at the {}, please.",
    "Show me the {} that you see.",
    "A box around the {} is needed.",
    "Mark the {}.",
    "Which region of the frame holds the {}?",
    "Can you see the {} here?",
)
DESCRIBE = (
    "Describe the {}.",
    "Tell me about the {} in this frame.",
    "Say what you see of the {}.",
    "How does the {} look?",
    "What do you see at the {}?",
    "Look at the {} and describe it.",
)

SceneTuple = tuple[str, str | None, str | None, tuple[int, int, int, int]]


def tasks(objects: Sequence[SceneTuple], rng: random.Random, count: int) -> list[tuple[str, str]]:
    """``count`` (request, reply) pairs about the objects ``(name, state, location, box in model units)`` of a scene."""
    result = []
    tools = [o for o in objects if o[1] is not None]
    for _ in range(count):
        form = rng.random()
        if form < 0.35:
            name, _, _, box = rng.choice(objects)
            request, reply = f"{rng.choice(DETECT).format(name)} Reply with box.", codec.render(None, None, box)
        elif form < 0.80:
            seen = rng.choice(objects)
            request = f"{rng.choice(DESCRIBE).format(seen[0])} Reply with think and box."
            reply = codec.render(_description(seen, rng.randrange(3)), None, seen[3])
        elif form < 0.92:
            seen = rng.choice(objects)
            request = f"What is in {codec.render(None, None, seen[3])}? Reply with think."
            reply = codec.render(_description(seen), None, None)
        else:
            # Without the cues: the longest reply sets what a step costs.
            ordered = sorted(tools, key=lambda o: o[3][0])
            listed = ", ".join(f"the {name} in the {PLACES[place]}" for name, _, place, _ in ordered if place)
            request, reply = "Describe the frame. Reply with think.", codec.render(listed, None, None)
        result.append((request, reply))
    return result


def _description(seen: SceneTuple, form: int = 0) -> str:
    name, state, place, _ = seen
    where = f" in the {PLACES[place]}" if place else ""
    cue = f" with {CUES[state]}" if state else ""
    if form == 1 and where:
        return f"{where.strip()} the {name} is seen{cue}"
    if form == 2:
        return f"the {name} is seen{cue}{where}"
    return f"the {name}{where} is seen{cue}"


def corpus() -> list[str]:
    """Text that the tokenizer is trained on: prompts, vocabulary, cues, places and the words of the paper's tasks."""
    from surgery_r1 import prompts

    lines = [prompts.system_text(space) for space in codec.BOX_SPACES] * 4
    for task in ("cot", "visual_qa", "grounding_qa"):
        for reasoning in (True, False):
            lines += [prompts.user_text("What organ is being operated?", task, reasoning)] * 4
    for tool in vocab.TOOLS:
        lines += [f"What is the state of {tool}? Where is {tool} located?"]
        lines += [f"Detect the {tool}.", f"Describe the {tool}."]
        lines += [f"<think>{tool}</think>{tool} {tool}.", f"The {tool} the {tool} is {tool},"]
        for state in vocab.STATES:
            lines += [
                f"The {tool} in the {place} shows {CUES[state]}. <box>[1, 2, 3, 4]</box>" for place in PLACES.values()
            ]
            lines += [f"<answer>{state}</answer> {state} is {state.replace('_', ' ').lower()} {state.lower()}."]
        for location in vocab.LOCATIONS:
            words = location.replace("-", " ")
            lines += [f"<answer>{location}</answer> {location} {words}, {words}."]
    lines += [
        "Describe the frame. What is in the kidney organ being operated reply with box. What tool is in left-top?"
    ] * 8
    for word in _WORDS.split():
        lines += [f"<think>{word} {word}, {word} {word.capitalize()} {word}.</think>{word.capitalize()}"] * 4
    return lines


#: Words that reasoning is likely to use, so that each is one token.
_WORDS = (
    "a an and are as at be because being box but by can center close closed cut dark doing down enters far finds for "
    "frame from half has here holds image in inside into it its jaws kidney large left lies located looks lower middle "
    "near no not of on open operated or organ other over part place points pulls pushes quarter red reddish right see "
    "seen shaft shape shows side so state surgical than that the there therefore thing this tip tissue to tool toward "
    "towards under up upper view visible we what where which while with work working bottom top answer means action "
    "idle visibly quadrant instrument name named"
)


def to_units(box_px: Box, view: codec.View) -> tuple[int, int, int, int]:
    """Source pixels to the tiny model's units (0 to 100)."""
    return codec.to_model(box_px, "norm100", view)
