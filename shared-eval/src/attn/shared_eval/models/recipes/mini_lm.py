"""``mini-lm``: a Llama that reads prose and does the language-model tasks, in growing depth and contexts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn.shared_eval.data import Draw, text_tokenizer
from attn.shared_eval.data.tasks import (
    Prompt,
    chained_lookup,
    docs_tokens,
    k_shot,
    kv_recall,
    list_reading,
    multi_hop,
    pad_prompts,
    passkey,
)
from attn.shared_eval.data.tasks.prompt import PromptWriter
from attn.shared_eval.data.tokenizers import SYMBOLS, TEXT_VOCABULARY
from attn.shared_eval.models.gates import Gate
from attn.shared_eval.models.recipe import Recipe
from attn.shared_eval.models.recipes import mini_lm_gates

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from transformers import PreTrainedTokenizerBase

PARTS = ("text", "answers", "copy")
SAMPLE = 1024  # tokens of a sample: one row of the longest context, or several of a shorter one
SHARES = {
    "text": 0.40,
    "kv_recall": 0.22,
    "k_shot": 0.08,
    "passkey": 0.08,
    "multi_hop": 0.08,
    "chained_lookup": 0.10,
    "list_reading": 0.04,
}
SHALLOW_SHARES = {"text": 0.30, "copy": 0.30, "kv_recall": 0.40}
SHALLOW = 64  # context of the rows that the lowest two layers learn alone
SHALLOW_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class MiniLm(Recipe):
    """LlamaForCausalLM on prose of the docs corpus and six tasks, rows of 64 to 1,024 tokens.

    A sample is 1,024 tokens: as many rows as that makes at the context of its place in the curriculum. A row is prose,
    or one prompt whose dials are drawn to fill it, and hence harder in a longer context. The rows of 64 tokens are
    prose, recall, and words that repeat; the lowest two layers learn them alone. The others, which are the identity to
    begin with, join at 128.

    Args:
        hidden_size, layers, heads, key_value_heads, head_dim, intermediate_size: of the Llama.
        curriculum: contexts and the share of the training in which each is used, in order; divisors of 1,024.
    """

    name: str = "mini-lm"
    package: str = "attn.shared_eval.models"
    steps: int = 3100
    batch_size: int = 4
    learning_rate: float = 2e-3
    precision: str = "bf16-mixed"
    hidden_size: int = 192
    layers: int = 8
    heads: int = 8
    key_value_heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 512
    curriculum: tuple[tuple[int, float], ...] = ((64, 0.46), (128, 0.22), (256, 0.18), (512, 0.10), (1024, 0.04))
    notes: str = mini_lm_gates.NOTES

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the docs corpus, of 2,048 tokens."""
        return text_tokenizer()

    def build(self) -> nn.Module:
        """A Llama with grouped-query heads and tied embeddings, whose upper layers add nothing yet."""
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=TEXT_VOCABULARY,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.key_value_heads,
                head_dim=self.head_dim,
                intermediate_size=self.intermediate_size,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        for layer in model.model.layers[SHALLOW_LAYERS:]:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        return model

    def context(self, index: int) -> int:
        """Tokens of a row at a sample's place in the curriculum; the last context goes on behind its end."""
        samples = self.steps * self.batch_size
        ends = accumulate(share for _, share in self.curriculum)
        for (context, _), end in zip(self.curriculum, ends, strict=True):
            if index < round(end * samples):
                return context
        return self.curriculum[-1][0]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows of these samples, all at the context of the first.

        Returns:
            ``input_ids`` and ``labels``, int64 ``[rows, context]``; ``part``, int64 ``[rows]``: the index in `PARTS` of
            the loss that a row belongs to.
        """
        context = self.context(indices[0])
        rows = SAMPLE // context
        kinds, prompts = zip(
            *(self._row(index * SAMPLE + row, context) for index in indices for row in range(rows)), strict=True
        )
        padded = pad_prompts(prompts, length=context)
        part = torch.tensor([PARTS.index(kind) if kind in PARTS else PARTS.index("answers") for kind in kinds])
        return {"input_ids": padded["input_ids"], "labels": padded["labels"], "part": part}

    def losses(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean cross-entropy of each of `PARTS`: the tokens of the prose, the answers, the words that repeat.

        Zero where there are none.
        """
        context = batch["input_ids"].shape[1]
        # On the CPU the fused kernel's backward is slower than plain matrix products for short rows.
        model.set_attn_implementation("eager" if context <= 128 else "sdpa")
        model.config.num_hidden_layers = min(self.layers, SHALLOW_LAYERS) if context == SHALLOW else self.layers
        labels = batch["labels"][:, 1:]
        wanted = labels.ne(-100)
        hidden = model.model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1][wanted]
        loss = F.cross_entropy(model.lm_head(hidden).float(), labels[wanted], reduction="none")
        model.config.num_hidden_layers = self.layers
        part = batch["part"][:, None].expand_as(labels)[wanted]
        return {
            name: loss[part == index].sum() / (part == index).sum().clamp(min=1) for index, name in enumerate(PARTS)
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the three losses."""
        return torch.stack(list(self.losses(model, batch).values())).sum()

    def lightning_module(self) -> "LightningModule":
        """The common training, with the three losses in the log."""
        from attn.shared_eval.models.training import RecipeModule

        class ThreeLosses(RecipeModule):
            def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
                losses = self.recipe.losses(self.model, batch)  # type: ignore[attr-defined]
                loss = torch.stack(list(losses.values())).sum()
                self.log_dict({"loss": loss, **losses}, prog_bar=True)
                return loss

        return ThreeLosses(self)

    def gates(self) -> list[Gate]:
        """Prose, recall that is imperfect with many pairs, passkeys, sinks, and attention to far pages."""
        return mini_lm_gates.gates(self.seed)

    def narrow(self) -> Recipe:
        """One layer of width 32, three steps in float32."""
        return replace(
            self,
            steps=3,
            batch_size=1,
            precision="32-true",
            hidden_size=32,
            layers=1,
            heads=2,
            key_value_heads=1,
            head_dim=16,
            intermediate_size=32,
        )

    def _row(self, row: int, context: int) -> tuple[str, Prompt]:
        draw = Draw("mini-lm", "row", self.seed, row)
        kind = _kind(draw.random(), SHALLOW_SHARES if context == SHALLOW else SHARES)
        task: dict[str, Any] = {"index": row, "split": "train", "seed": self.seed}
        if kind == "text":
            tokens = docs_tokens("train")
            first = draw.integer(len(tokens) - context)
            ids = torch.cat([torch.tensor([self.tokenizer.bos_token_id]), tokens[first : first + context - 1].long()])
            prompt = Prompt(ids, ids, (), ())
        elif kind == "copy":
            prompt = _repeated_words(draw, context)
        elif kind == "kv_recall":
            prompt = kv_recall(**task, **_kv_recall_dials(draw, context))
        elif kind == "k_shot":
            prompt = k_shot(**task, **_k_shot_dials(draw, context))
        elif kind == "passkey":
            prompt = passkey(**task, **_passkey_dials(draw, context))
        elif kind == "multi_hop":
            prompt = multi_hop(**task, **_multi_hop_dials(draw, context))
        elif kind == "chained_lookup":
            prompt = chained_lookup(**task, **_chained_lookup_dials(draw, context))
        else:
            prompt = list_reading(**task, items=min(16, 2 + draw.integer(context // 18 - 1)), top=2)
        return kind, prompt


def _kind(place: float, shares: dict[str, float]) -> str:
    """What stands at a place in 0 .. 1 when the kinds of rows are laid end to end."""
    ends = accumulate(shares.values())
    return next((kind for kind, end in zip(shares, ends, strict=True) if place < end), "text")


def _repeated_words(draw: Draw, context: int) -> Prompt:
    """A run of 4 to a third of the context of words, again and again; all but the first are to be named."""
    period = 4 + draw.integer(context // 3 - 4)
    words = [draw.choice(SYMBOLS) for _ in range(period)]
    writer = PromptWriter()
    writer.write(*words)
    for place in range(period, context - 1):
        writer.answer(words[place % period], [(place - period + 1, place - period + 2)])
    return writer.prompt()


def _kv_recall_dials(draw: Draw, context: int) -> dict[str, Any]:
    """Plain pairs in the shortest context; then a quarter with letters, distractors and a gap, growing with it."""
    separator = draw.choice(";.\n")
    if context == SHALLOW:
        pairs = 2 + draw.integer(5)
        return {"pairs": pairs, "queries": pairs, "separator": separator}
    if draw.random() < 0.25:
        pairs = 4 + draw.integer(5)
        queries = min(pairs, (context - 2 - 3 * pairs) // 12)
        return {"pairs": pairs, "queries": queries, "answer": "letter", "separator": separator}
    pairs = 2 + draw.integer(min(15, context // 32 + 3))
    distractors = draw.integer(min(pairs, context // 16) + 1)
    room = context - 2 - 3 * (pairs + distractors)
    queries = min(pairs, room // 3)
    gap = draw.integer(room - 3 * queries + 1)
    return {"pairs": pairs, "queries": queries, "distractors": distractors, "gap": gap, "separator": separator}


def _k_shot_dials(draw: Draw, context: int) -> dict[str, Any]:
    words, classes = 1 + draw.integer(2), 2 + draw.integer(3)
    lines = (context - 1) // (words + 2)
    shots = 1 + draw.integer(min(8, lines // (2 * classes)))
    return {"words": words, "classes": classes, "shots": shots, "queries": min(12, lines - shots * classes)}


def _passkey_dials(draw: Draw, context: int) -> dict[str, Any]:
    length = context - 1 - draw.integer(context // 2)
    return {"length": length, "block": draw.choice((None, 16)), "filler": draw.choice(("noise", "docs"))}


def _multi_hop_dials(draw: Draw, context: int) -> dict[str, Any]:
    longest = context // 32
    most = (context - 1) // (9 + longest)
    hops = 1 + draw.integer(2)
    paragraphs = hops + draw.integer(most - hops + 1)
    return {"paragraphs": paragraphs, "hops": hops, "queries": paragraphs // hops, "filler": (0, longest)}


def _chained_lookup_dials(draw: Draw, context: int) -> dict[str, Any]:
    page = 4 + draw.integer(5)
    most = min(48, context // 10, (context - page) // (page + 1))
    records = 3 + draw.integer(most - 2)
    return {"records": records, "page": page, "hops": records - 1}
