"""ShapesWorld: procedural scenes of colored shapes with exact masks and texts."""

from attn.shared_eval.data.shapesworld.captions import (
    Caption,
    CaptionNoise,
    Listing,
    Mention,
    Paragraph,
    Span,
    caption,
    listing,
    paragraph,
)
from attn.shared_eval.data.shapesworld.clips import Fit, clip, fit
from attn.shared_eval.data.shapesworld.dataset import ScenesDataset, picture_tensors
from attn.shared_eval.data.shapesworld.edits import EDITS, Edit, edits
from attn.shared_eval.data.shapesworld.families import FAMILIES, World, class_label, family
from attn.shared_eval.data.shapesworld.noise import AnswerPrior, Detector, ImageDrop, PromptDrop, mean_picture
from attn.shared_eval.data.shapesworld.questions import QUESTIONS, Question, questions
from attn.shared_eval.data.shapesworld.referring import REFERRING, Referring, referring
from attn.shared_eval.data.shapesworld.renderer import PatchLabels, Picture, render
from attn.shared_eval.data.shapesworld.scene import Background, Scene, Shape

__all__ = [
    "EDITS",
    "FAMILIES",
    "QUESTIONS",
    "REFERRING",
    "AnswerPrior",
    "Background",
    "Caption",
    "CaptionNoise",
    "Detector",
    "Edit",
    "Fit",
    "ImageDrop",
    "Listing",
    "Mention",
    "Paragraph",
    "PatchLabels",
    "Picture",
    "PromptDrop",
    "Question",
    "Referring",
    "Scene",
    "ScenesDataset",
    "Shape",
    "Span",
    "World",
    "caption",
    "class_label",
    "clip",
    "edits",
    "family",
    "fit",
    "listing",
    "mean_picture",
    "paragraph",
    "picture_tensors",
    "questions",
    "referring",
    "render",
]
