"""Drawn laparoscopic scenes: a stand-in for EndoVis frames that anyone may have."""

from surgery_r1.sources.scenes.draw import draw_random_scene
from surgery_r1.sources.scenes.model import DrawnScene, SceneObject
from surgery_r1.sources.scenes.write import make_scenes

__all__ = ["DrawnScene", "SceneObject", "draw_random_scene", "make_scenes"]
