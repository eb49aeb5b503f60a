"""Drawn laparoscopic scenes: a stand-in for EndoVis frames that anyone may have."""

from surgery_r1.synthetic.render import draw_random_scene
from surgery_r1.synthetic.scene import DrawnObject, DrawnScene
from surgery_r1.synthetic.write import make_scenes

__all__ = ["DrawnObject", "DrawnScene", "draw_random_scene", "make_scenes"]
