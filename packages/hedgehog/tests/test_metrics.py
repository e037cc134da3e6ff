"""Task metrics against sums by hand, the library's own metrics, and one process against several splits."""

import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.text import Perplexity

from attn.hedgehog.metrics import (
    ClassificationMetrics,
    LanguageModelMetrics,
    RecallMetrics,
    RegressionMetrics,
    SummaryMetrics,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(metrics):
    return {name: float(value) for name, value in metrics.compute().items()}


def test_language_model_metrics_equal_a_sum_over_tokens_and_the_library():
    logits, labels = draw(3, 5, 7), torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 3:] = -100
    metrics = LanguageModelMetrics()
    metrics.observe(None, {"labels": labels[:2]}, SimpleNamespace(logits=logits[:2]))
    metrics.observe(None, {"labels": labels[2:]}, SimpleNamespace(logits=logits[2:]))
    nats = [
        -math.log(math.exp(logits[b, i, labels[b, i + 1]]) / sum(math.exp(x) for x in logits[b, i].tolist()))
        for b in range(3)
        for i in range(4)
        if labels[b, i + 1] != -100
    ]
    library = Perplexity(ignore_index=-100)
    library.update(logits[:, :-1], labels[:, 1:])
    assert values(metrics)["nats"] == pytest.approx(sum(nats) / len(nats))
    assert values(metrics)["perplexity"] == pytest.approx(float(library.compute()), rel=1e-5)


def test_recall_accuracy_counts_only_what_is_asked():
    logits = torch.eye(4)[torch.tensor([[0, 1, 2, 3]])]
    metrics = RecallMetrics(values=4)
    metrics.observe(None, {"labels": torch.tensor([[-100, 1, 2, 0]])}, SimpleNamespace(logits=logits))
    assert values(metrics)["accuracy"] == pytest.approx(2 / 3)


def test_classification_metrics_equal_their_definitions():
    predicted, labels = torch.tensor([1, 1, 1, 0, 0, 1]), torch.tensor([1, 0, 1, 0, 1, 1])
    metrics = ClassificationMetrics()
    metrics.observe(None, {"labels": labels}, SimpleNamespace(logits=torch.eye(2)[predicted]))
    tp, fp, fn, tn = 3, 1, 1, 1
    assert values(metrics) == pytest.approx(
        {
            "accuracy": (tp + tn) / 6,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "matthews": (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        }
    )


def test_more_classes_than_two():
    predicted, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])
    metrics = ClassificationMetrics(3)
    metrics.observe(None, {"labels": labels}, SimpleNamespace(logits=torch.eye(3)[predicted]))
    assert values(metrics)["accuracy"] == pytest.approx(3 / 4)
    assert values(metrics)["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_regression_metrics_equal_their_definitions():
    predicted, labels = torch.tensor([1.0, 2.0, 4.0, 3.5]), torch.tensor([0.0, 1.0, 2.0, 5.0])
    metrics = RegressionMetrics()
    for rows in slice(0, 2), slice(2, 4):
        metrics.observe(None, {"labels": labels[rows]}, SimpleNamespace(logits=predicted[rows, None]))
    pearson = torch.corrcoef(torch.stack([predicted, labels]))[0, 1]
    spearman = 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15)
    assert values(metrics) == pytest.approx({"pearson": float(pearson), "spearman": spearman}, rel=1e-5)


class Copier:
    """Generates the words that it was told to, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, None

    def generate(self, input_ids, attention_mask, **options):
        self.asked = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.cat([input_ids, self.answers], dim=1)


class Words:
    """A tokenizer that knows ten words."""

    pad_token_id, eos_token_id = 0, 1
    words = ("", "", "ann", "meets", "bob", "today", "sees", "running", "run", "no")

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(self.words[i] for i in row if i > 1) for row in rows]


def test_summaries_are_generated_from_the_prompt_and_scored_by_rouge():
    batch = {
        "input_ids": torch.tensor([[9, 9, 2, 3, 4, 1], [9, 7, 8, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 2, 3, 4, 1], [-100, -100, 8, 1, -100, -100]]),
    }
    model, metrics = Copier(torch.tensor([[2, 6, 4, 5], [7, 1, 0, 0]])), SummaryMetrics(Words())
    metrics.observe(model, batch, None)
    assert model.asked == [[9, 9], [9, 7]]
    # "ann sees bob today" for "ann meets bob": 2 of 4 and 2 of 3 words; "running" for "run" is right after stemming.
    rouge1 = 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)
    assert values(metrics)["rouge1"] == pytest.approx((rouge1 + 1) / 2)
    assert values(metrics)["rouge2"] == pytest.approx(0)
