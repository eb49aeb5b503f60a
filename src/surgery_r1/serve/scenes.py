"""Drawn scenes that are there at once, so that nobody needs a patient's frame to see what the model does."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery_r1 import vocab
from surgery_r1.serve.questions import suggestions
from surgery_r1.synthetic.placement import plan_sequence
from surgery_r1.synthetic.render import objects_of, render_scene
from surgery_r1.synthetic.statistics import sequence_records
from surgery_r1.synthetic.write import style_of

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (640, 512)
#: Not that of any shipped config: nothing was trained on these scenes.
_SEED = 77
#: Sequence of the held-out style, and the frame in it.
_SHOWN = ((1, 30), (1, 110), (5, 60), (16, 40), (16, 100), (5, 10))


@dataclass(frozen=True, slots=True)
class SampleScene:
    """A drawn scene: its picture, in memory and as a PNG, and what is in it."""

    id: str
    title: str
    image: Image
    png: bytes
    objects: tuple[dict[str, Any], ...]

    def shown(self) -> dict[str, Any]:
        """The scene as ``/v1/samples`` lists it."""
        tools = [seen["name"] for seen in self.objects if seen["name"] != vocab.ORGAN]
        return {
            "id": self.id,
            "title": self.title,
            "width": self.image.width,
            "height": self.image.height,
            "url": f"/samples/{self.id}.png",
            "questions": suggestions(dict.fromkeys(tools)),
            "objects": list(self.objects),
        }


def draw_scenes(size: tuple[int, int] = SIZE) -> dict[str, SampleScene]:
    """The scenes by their fixed ids; the same in every process."""
    records = sequence_records(18, _SEED)
    scenes = {}
    for number, (sequence, frame) in enumerate(_SHOWN, start=1):
        style = style_of(18, sequence, _SEED)
        # Planned as a sequence of one frame: motion is not seen in it.
        alone = records[sequence][frame : frame + 1]
        [plan] = plan_sequence(alone, size[0] / size[1], style, 18, _SEED, sequence, frame)
        image = render_scene(plan, style, size)
        encoded = io.BytesIO()
        image.save(encoded, "PNG", compress_level=6)
        drawn = objects_of(plan, style, size)
        objects = tuple(
            {"name": seen.name, "state": seen.state, "location": seen.location, "box_px": list(seen.box_px)}
            for seen in drawn
        )
        names = [vocab.spoken(seen.name) for seen in drawn if seen.name != vocab.ORGAN]
        title = f"Drawn scene {number}: {', '.join(names) or 'no tool'}"
        name = f"scene-{number}"
        scenes[name] = SampleScene(name, title, image, encoded.getvalue(), objects)
    return scenes
