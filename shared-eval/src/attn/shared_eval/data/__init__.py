"""Data that several papers share: functions of a seed and an index, the docs corpus, local folders, tokenizers."""

from attn.shared_eval.data.draw import Draw
from attn.shared_eval.data.folders import load_table, load_text
from attn.shared_eval.data.recall import PackedRecall, PackedRecallDataset, packed_recall
from attn.shared_eval.data.reviews import Review, ReviewsDataset, reviews
from attn.shared_eval.data.stream import IndexStream
from attn.shared_eval.data.text import TextWindows, corpus_fingerprint, docs_bytes, docs_corpus
from attn.shared_eval.data.tokenizers import byte_tokenizer, shapes_tokenizer, text_tokenizer

__all__ = [
    "Draw",
    "IndexStream",
    "PackedRecall",
    "PackedRecallDataset",
    "Review",
    "ReviewsDataset",
    "TextWindows",
    "byte_tokenizer",
    "corpus_fingerprint",
    "docs_bytes",
    "docs_corpus",
    "load_table",
    "load_text",
    "packed_recall",
    "reviews",
    "shapes_tokenizer",
    "text_tokenizer",
]
