"""Metrics that several papers report and torchmetrics lacks: counts and sums, the same however data are split."""

from attn.shared_eval.metrics.amber import (
    AMBER_KINDS,
    AmberCounts,
    AmberDiscriminative,
    AmberGenerative,
    AmberWords,
    amber_counts,
)
from attn.shared_eval.metrics.answers import MME_COGNITION, MME_PERCEPTION, Mme, Pope, parse_mme, parse_yes_no
from attn.shared_eval.metrics.clip_score import ClipScore
from attn.shared_eval.metrics.detection import ClassAgnosticRecall, matched_objects
from attn.shared_eval.metrics.editing import (
    ProjectedKeys,
    RegionScore,
    StructureDistance,
    dino_pixels,
    structure_distance,
)
from attn.shared_eval.metrics.frechet import FrechetDistance, frechet_distance
from attn.shared_eval.metrics.language import (
    NatsPerToken,
    NeedleAccuracy,
    TokenPerplexity,
    string_match_all,
    string_match_any,
)
from attn.shared_eval.metrics.lemmas import wordnet_lemmas, wordnet_noun_lemmas, wordnet_nouns
from attn.shared_eval.metrics.lvis import LvisFixedAP
from attn.shared_eval.metrics.masks import MaskIoU, PointAccuracy, intersection_and_union
from attn.shared_eval.metrics.objects import (
    Chair,
    ObjectHalBench,
    ObjectMatcher,
    ObjectVocabulary,
    coco_objects,
    repeated_ngrams,
)
from attn.shared_eval.metrics.videos import JAndF, contour_accuracy

__all__ = [
    "AMBER_KINDS",
    "MME_COGNITION",
    "MME_PERCEPTION",
    "AmberCounts",
    "AmberDiscriminative",
    "AmberGenerative",
    "AmberWords",
    "Chair",
    "ClassAgnosticRecall",
    "ClipScore",
    "FrechetDistance",
    "JAndF",
    "LvisFixedAP",
    "MaskIoU",
    "Mme",
    "NatsPerToken",
    "NeedleAccuracy",
    "ObjectHalBench",
    "ObjectMatcher",
    "ObjectVocabulary",
    "PointAccuracy",
    "Pope",
    "ProjectedKeys",
    "RegionScore",
    "StructureDistance",
    "TokenPerplexity",
    "amber_counts",
    "coco_objects",
    "contour_accuracy",
    "dino_pixels",
    "frechet_distance",
    "intersection_and_union",
    "matched_objects",
    "parse_mme",
    "parse_yes_no",
    "repeated_ngrams",
    "string_match_all",
    "string_match_any",
    "structure_distance",
    "wordnet_lemmas",
    "wordnet_noun_lemmas",
    "wordnet_nouns",
]
