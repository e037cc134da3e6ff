"""Benchmarks as they lie on disk: a reader of the real tree of each, and a writer of the same tree from ShapesWorld."""

from attn.shared_eval.data.benchmarks.amber import AmberDescription, AmberQuestion, read_amber, write_amber
from attn.shared_eval.data.benchmarks.coco import CocoImage, CocoObject, read_coco, write_coco
from attn.shared_eval.data.benchmarks.lvis import LvisCategory, LvisImage, read_lvis, write_lvis
from attn.shared_eval.data.benchmarks.pie import PieItem, read_pie, write_pie
from attn.shared_eval.data.benchmarks.pope import PopeQuestion, read_pope, write_pope
from attn.shared_eval.data.benchmarks.reasonseg import FalsePremise, ReasonSegItem, read_reasonseg, write_reasonseg
from attn.shared_eval.data.benchmarks.refcoco import Reference, read_refcoco, write_refcoco
from attn.shared_eval.data.benchmarks.segmentation import decode_segmentation, polygons

__all__ = [
    "AmberDescription",
    "AmberQuestion",
    "CocoImage",
    "CocoObject",
    "FalsePremise",
    "LvisCategory",
    "LvisImage",
    "PieItem",
    "PopeQuestion",
    "ReasonSegItem",
    "Reference",
    "decode_segmentation",
    "polygons",
    "read_amber",
    "read_coco",
    "read_lvis",
    "read_pie",
    "read_pope",
    "read_reasonseg",
    "read_refcoco",
    "write_amber",
    "write_coco",
    "write_lvis",
    "write_pie",
    "write_pope",
    "write_reasonseg",
    "write_refcoco",
]
