"""Data that several papers share: functions of a seed and an index, the docs corpus, local folders, tokenizers."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.recall import PackedRecall, PackedRecallDataset, packed_recall
from attn.shared_eval.data.reviews import Review, ReviewsDataset, reviews
from attn.shared_eval.data.stream import IndexStream

__all__ = [
    "Draw",
    "IndexStream",
    "PackedRecall",
    "PackedRecallDataset",
    "Review",
    "ReviewsDataset",
    "packed_recall",
    "reviews",
]
