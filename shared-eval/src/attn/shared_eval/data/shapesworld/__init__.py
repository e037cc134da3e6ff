"""ShapesWorld: procedural scenes of colored shapes with exact masks and texts."""

from attn.shared_eval.data.shapesworld.dataset import ScenesDataset, picture_tensors
from attn.shared_eval.data.shapesworld.families import FAMILIES, World, class_label, family
from attn.shared_eval.data.shapesworld.renderer import PatchLabels, Picture, render
from attn.shared_eval.data.shapesworld.scene import Background, Scene, Shape

__all__ = [
    "FAMILIES",
    "Background",
    "PatchLabels",
    "Picture",
    "Scene",
    "ScenesDataset",
    "Shape",
    "World",
    "class_label",
    "family",
    "picture_tensors",
    "render",
]
