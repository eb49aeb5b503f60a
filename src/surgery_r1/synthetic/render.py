"""From a plan to a picture: tissue, organ, shadows, cues, tools, light, lens and sensor, in that order."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from surgery_r1 import vocab
from surgery_r1.geometry import Box, clip, scale
from surgery_r1.synthetic.boxes import location_of, tool_box, visible_box
from surgery_r1.synthetic.cues import draw_cue
from surgery_r1.synthetic.placement import plan_random
from surgery_r1.synthetic.scene import DrawnObject, DrawnScene, FramePlan, ToolPose
from surgery_r1.synthetic.style import Style, make_style, noise_tile
from surgery_r1.synthetic.tissue import MARGIN, kidney_outline, paint_kidney, paint_tissue
from surgery_r1.synthetic.tools import tool_parts

#: Tissue is soft: above this height it is painted small and enlarged, tools and cues stay sharp.
TISSUE_HEIGHT = 192


@lru_cache(maxsize=2)
def _tissue(style: Style, width: int, height: int) -> np.ndarray:
    """The tissue of a style with a margin to drift in, float32 (3, h, w). Cached: a sequence shares it."""
    pad = int(MARGIN * height + 1)
    return paint_tissue(style, width + 2 * pad, height + 2 * pad, height)


@lru_cache(maxsize=4)
def _light(style: Style, width: int, height: int) -> np.ndarray:
    """Light that reaches each pixel, float32 (h, w, 3): falls off from the lamp's spot; 0 outside a round mask."""
    aspect = width / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / height
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    r2 = (x[None, :] - style.light_centre[0] * aspect) ** 2 + (y[:, None] - style.light_centre[1]) ** 2
    light = style.gain / (1 + style.vignette * 1.6 * r2) - 0.25 * style.vignette * r2
    if style.circle is not None:
        r = np.sqrt((x[None, :] - aspect / 2) ** 2 + (y[:, None] - 0.5) ** 2)
        light = light * np.clip((style.circle - r) * height + 0.5, 0, 1)
    return np.clip(light, 0, 2)[..., None] * np.asarray(style.tint, np.float32)


def _pixels(colour) -> tuple[int, int, int]:
    return tuple(min(255, max(0, round(255 * c))) for c in colour)  # type: ignore[return-value]


def draw_tool(draw: ImageDraw.ImageDraw, pose: ToolPose, style: Style, unit: float) -> None:
    """Draw shaft, wrist and jaws; ``unit`` is pixels per frame height."""
    width = max(1, round(0.0045 * unit))
    for part in tool_parts(pose, style.shaft):
        points = (part.points * unit).ravel().tolist()
        draw.polygon(points, fill=_pixels(part.fill))
        if part.edge:
            draw.line(points + points[:4], fill=_pixels(part.edge), width=width)


def _shadow(plan: FramePlan, style: Style, width: int, height: int) -> Image.Image:
    """How much of the lamp each pixel keeps under the tools, "L": soft, offset away from the light."""
    small = (max(1, width // 2), max(1, height // 2))
    mask = Image.new("L", small, 255)
    draw = ImageDraw.Draw(mask)
    unit = small[1]
    off = (-0.05 * style.light[0], -0.05 * style.light[1])
    for pose in plan.tools:
        for i, part in enumerate(tool_parts(pose, style.shaft)):
            if i == 0 or part.edge:
                draw.polygon(((part.points + off) * unit).ravel().tolist(), fill=118)
    return mask.filter(ImageFilter.BoxBlur(0.02 * unit)).resize((width, height), Image.Resampling.BILINEAR)


def render_scene(plan: FramePlan, style: Style, size: tuple[int, int]) -> Image.Image:
    """The picture (RGB) of ``plan`` at ``size`` (width, height)."""
    width, height = size
    shrink = min(1.0, TISSUE_HEIGHT / height)
    w, h = round(width * shrink), round(height * shrink)
    pad = int(MARGIN * h + 1)
    x0, y0 = (min(2 * pad, max(0, pad - round(d * h))) for d in plan.drift)
    ground = _tissue(style, w, h)[:, y0 : y0 + h, x0 : x0 + w].copy()
    paint_kidney(ground, plan.kidney, style, h)
    ground *= 255
    planes = np.clip(ground, 0, 255, out=ground).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    shadow = _shadow(plan, style, width, height)
    image = ImageChops.multiply(image, Image.merge("RGB", (shadow, shadow, shadow)))
    # Cues and tools are drawn enlarged and averaged down, which rounds their edges.
    fine = 3 if height < 200 else 2
    image = image.resize((width * fine, height * fine), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image, "RGBA")
    unit = float(height * fine)
    for pose in plan.tools:
        draw_cue(draw, pose, style, unit, over=False)
    for pose in plan.tools:
        draw_tool(draw, pose, style, unit)
    for pose in plan.tools:
        draw_cue(draw, pose, style, unit, over=True)
    image = image.reduce(fine)
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur * height))
    lit = np.asarray(image, np.float32) * _light(style, width, height)
    tile = noise_tile(7, 0.35)
    rows = (np.arange(height) + plan.grain % 251) % tile.shape[0]
    columns = (np.arange(width) + plan.grain // 251 % 251) % tile.shape[1]
    lit += (style.grain * tile[rows][:, columns])[..., None]
    if style.circle is not None:
        lit *= _light(style, width, height)[..., :1] > 0
    return Image.fromarray(np.clip(lit + 0.5, 0, 255).astype(np.uint8))


def objects_of(plan: FramePlan, style: Style, size: tuple[int, int]) -> tuple[DrawnObject, ...]:
    """Annotated objects of a plan, kidney first; needs no drawing."""
    width, height = size
    aspect = width / height
    found = []

    def pixels(box: Box) -> Box:
        return clip(scale(box, height, height), float(width), float(height))

    box = visible_box([kidney_outline(plan.kidney)], aspect, style.circle)
    if box:
        found.append(DrawnObject(vocab.ORGAN, None, None, pixels(box), None))
    for pose in plan.tools:
        box = tool_box(pose, aspect, style.circle)
        if box is None or location_of(box, aspect) != pose.location:
            raise RuntimeError(f"{pose.name} does not lie at {pose.location}: {box}")
        tip = (pose.tip[0] * height, pose.tip[1] * height)
        found.append(DrawnObject(pose.name, pose.state, pose.location, pixels(box), tip))
    return tuple(found)


def draw_random_scene(rng: random.Random, size: tuple[int, int], style_seed: int | None = None) -> DrawnScene:
    """A scene with flat statistics for pretraining: any tool in any state anywhere, in a domain-18-like style.

    Styles come from a namespace of pretraining's own; those of drawn train, val and domain 17 are never used.
    ``size`` is (width, height) in pixels.
    """
    style = make_style("pretrain", rng.getrandbits(48) if style_seed is None else style_seed)
    names = rng.sample(vocab.TOOLS, rng.randint(1, 4))
    record = [(name, rng.choice(vocab.STATES), rng.choice(vocab.LOCATIONS)) for name in names]
    plan = plan_random(rng, size[0] / size[1], style, record)
    return DrawnScene(render_scene(plan, style, size), objects_of(plan, style, size))
