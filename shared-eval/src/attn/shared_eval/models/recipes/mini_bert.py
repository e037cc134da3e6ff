"""``mini-bert``: a BERT classifier of phrase-cue reviews, and a deliberately weak one trained on noisy labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.data import default_collate

from attn.shared_eval.data import Draw, ReviewsDataset, reviews, shapes_tokenizer
from attn.shared_eval.models.gates import Gate
from attn.shared_eval.models.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = 51  # 49 words, the classification token and the separator


@dataclass(frozen=True, kw_only=True)
class MiniBert(Recipe):
    """BertForSequenceClassification on 4,000 reviews, six epochs.

    Args:
        hidden_size, layers, heads, intermediate_size: of the encoder.
        train_reviews: size of the training set.
        label_noise: share of the training labels that are flipped; test labels are clean.
    """

    name: str = "mini-bert"
    package: str = "attn.shared_eval.models"
    steps: int = 750
    batch_size: int = 32
    learning_rate: float = 1e-3
    hidden_size: int = 96
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 256
    train_reviews: int = 4000
    label_noise: float = 0.0

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of scenes and reviews, of 512 words."""
        return shapes_tokenizer()

    def build(self) -> nn.Module:
        """A BERT classifier of two classes over the 512 words of the tokenizer."""
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=512,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=96,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return BertForSequenceClassification(config)

    @cached_property
    def training_set(self) -> ReviewsDataset:
        """The tokenized training reviews."""
        texts = reviews("train", self.train_reviews, seed=self.seed, label_noise=self.label_noise)
        return ReviewsDataset(texts, self.tokenizer, length=TOKENS)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Reviews by index: epoch after epoch, each in an order of its own."""
        rows = [self._order(index // self.train_reviews)[index % self.train_reviews] for index in indices]
        return default_collate([self.training_set[row] for row in rows])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the two classes."""
        return model(**batch).loss

    def accuracy(self, model: nn.Module, samples: int) -> float:
        """Share of clean test reviews whose class is right."""
        items = ReviewsDataset(reviews("test", samples, seed=self.seed), self.tokenizer, length=TOKENS)
        logits = model(input_ids=items.input_ids, attention_mask=items.attention_mask).logits
        return (logits.argmax(-1) == items.labels).double().mean().item()

    def gates(self) -> list[Gate]:
        """Nearly every review is classified."""
        return [Gate(name="accuracy", measure=self.accuracy, low=0.99, samples=2000)]

    def narrow(self) -> Recipe:
        """One layer of width 32 on 64 reviews, three steps."""
        return replace(
            self, steps=3, hidden_size=32, layers=1, heads=2, intermediate_size=32, train_reviews=64, batch_size=16
        )

    @cached_property
    def _orders(self) -> dict[int, list[int]]:
        return {}

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders[epoch] = Draw("order", self.seed, epoch).shuffle(range(self.train_reviews))
        return self._orders[epoch]


@dataclass(frozen=True, kw_only=True)
class MiniBertNoisy(MiniBert):
    """A weak classifier: one epoch, with a tenth of the labels flipped."""

    name: str = "mini-bert-noisy"
    steps: int = 125
    label_noise: float = 0.1

    def gates(self) -> list[Gate]:
        """Better than chance, and clearly imperfect."""
        return [Gate(name="accuracy", measure=self.accuracy, low=0.8, high=0.9, samples=2000)]
