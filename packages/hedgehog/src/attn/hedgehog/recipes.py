"""``hedgehog-bytes``: a small pretrained language model of Llama's class, over bytes, to test conversions on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from attn.shared_eval.data import TextWindows, byte_tokenizer, docs_bytes
from attn.shared_eval.models import Gate, Recipe

CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class HedgehogBytes(Recipe):
    """A causal language model of two layers and four heads of 16, trained on windows of 256 bytes of the docs corpus.

    Args:
        hidden_size, layers, heads: of the decoder; head_dim is their quotient.
    """

    name: str = "hedgehog-bytes"
    package: str = "attn.hedgehog"
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 3e-3
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token a byte."""
        return byte_tokenizer()

    def build(self) -> nn.Module:
        """A Llama decoder with tied embeddings."""
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=4 * CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return LlamaForCausalLM(config)

    @cached_property
    def training_set(self) -> TextWindows:
        """The windows of the training split, without overlap."""
        return TextWindows(docs_bytes("train"), CONTEXT)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Windows by index: epoch after epoch, each in an order of its own."""
        size = len(self.training_set)
        rows = [self._order(index // size)[index % size] for index in indices]
        ids = torch.stack([self.training_set[int(row)] for row in rows])
        return {"input_ids": ids, "labels": ids}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Nats per byte."""
        loss: Tensor = model(**batch, use_cache=False).loss
        return loss

    def share_of_unigram_entropy(self, model: nn.Module, samples: int) -> float:
        """Nats per byte on unseen text of the training packages, as a share of the entropy of its single bytes."""
        text = docs_bytes("test_in_domain")
        windows = TextWindows(text, CONTEXT)
        rows = torch.stack([windows[i] for i in range(min(samples, len(windows)))])
        with torch.no_grad():
            losses = [model(input_ids=part, labels=part, use_cache=False).loss * len(part) for part in rows.split(64)]
        frequencies = torch.bincount(text.long()).double() / len(text)
        return float(sum(losses) / len(rows) / torch.special.entr(frequencies).sum())

    def gates(self) -> list[Gate]:
        """Well below what single bytes tell: the model uses its context."""
        gate = Gate(
            name="nats per byte, share of unigram entropy",
            measure=self.share_of_unigram_entropy,
            high=0.65,
            samples=512,
            quick_samples=64,
        )
        return [gate]

    def narrow(self) -> Recipe:
        """One layer of width 32, three steps."""
        return replace(self, steps=3, hidden_size=32, layers=1, heads=2, batch_size=4)

    @cached_property
    def _orders(self) -> dict[int, Tensor]:
        return {}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 2**20 + epoch)
            self._orders[epoch] = torch.randperm(len(self.training_set), generator=generator)
        return self._orders[epoch]
