"""What a trained model is measured by: one class for each kind of task, on torchmetrics."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)
from torchmetrics.functional.text import rouge_score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from attn.shared_eval.metrics import NatsPerToken, TokenPerplexity

IGNORED = -100


class TaskMetrics(MetricCollection):
    """The metrics of one kind of task (abstract): a collection that reads a batch and the model's output on it."""

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Take in a batch with labels and the output of the model on it."""
        raise NotImplementedError


class LanguageModelMetrics(TaskMetrics):
    """Nats and perplexity per predicted token of a causal language model: each label but the first, -100 ignored."""

    def __init__(self) -> None:
        super().__init__({"nats": NatsPerToken(), "perplexity": TokenPerplexity()})

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Score every label by the logits of the token before it."""
        self.update(output.logits[:, :-1], batch["labels"][:, 1:])


class RecallMetrics(TaskMetrics):
    """Accuracy of the values named where one is asked for.

    Args:
        values: size of the value vocabulary.
    """

    def __init__(self, values: int = 20) -> None:
        super().__init__({"accuracy": MulticlassAccuracy(values, average="micro", ignore_index=IGNORED)})

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Compare the likeliest value of each token with its label."""
        self.update(output.logits.argmax(dim=-1), batch["labels"])


class ClassificationMetrics(TaskMetrics):
    """Accuracy, F1 and Matthews' correlation of a sequence classifier, fractions.

    F1 is that of class 1 with two classes (GLUE's convention) and the mean over classes with more.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int = 2) -> None:
        metrics: dict[str, Metric | MetricCollection] = (
            {"accuracy": BinaryAccuracy(), "f1": BinaryF1Score(), "matthews": BinaryMatthewsCorrCoef()}
            if num_classes == 2
            else {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes),
                "matthews": MulticlassMatthewsCorrCoef(num_classes),
            }
        )
        super().__init__(metrics)

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Compare the likeliest class of each sequence with its label."""
        self.update(output.logits.argmax(dim=-1), batch["labels"])


class RegressionMetrics(TaskMetrics):
    """Pearson's and Spearman's correlation of one predicted number with its label (STS-B)."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # that all predictions are kept: they are one number a sequence
            warnings.simplefilter("ignore", UserWarning)
            spearman = SpearmanCorrCoef()
        super().__init__({"pearson": PearsonCorrCoef(), "spearman": spearman}, compute_groups=False)

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Compare the single logit of each sequence with its label."""
        self.update(output.logits.squeeze(-1).float(), batch["labels"].float())


class RougeFMeasure(Metric):
    """Mean F-measure of one kind of ROUGE over summaries, with stemming: a sum by the number of summaries.

    torchmetrics' `ROUGEScore` computes several kinds at once into a dictionary, which Lightning cannot log.

    Args:
        kind: ``"rouge1"``, ``"rouge2"`` or ``"rougeL"``.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    summaries: Tensor

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("summaries", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, summaries: list[str], references: list[str]) -> None:
        """Take in summaries and the reference of each."""
        scores = rouge_score(summaries, references, use_stemmer=True, rouge_keys=self.kind)
        self.total += scores[f"{self.kind}_fmeasure"].double() * len(summaries)
        self.summaries += len(summaries)

    def compute(self) -> Tensor:
        """A fraction; NaN without summaries."""
        return self.total / self.summaries


class SummaryMetrics(TaskMetrics):
    """ROUGE-1, -2 and -L F-measures, with stemming, of greedily generated summaries, fractions (SAMSum).

    The prompt of a sequence is its visible tokens without a label, the reference those with one.

    Args:
        tokenizer: the model's, or the folder or name to load it from.
        max_new_tokens: length at which a summary is cut.
    """

    def __init__(self, tokenizer: str | PreTrainedTokenizerBase, *, max_new_tokens: int = 128) -> None:
        super().__init__({kind: RougeFMeasure(kind) for kind in ("rouge1", "rouge2", "rougeL")})
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.max_new_tokens = max_new_tokens

    def observe(self, model: nn.Module, batch: dict[str, Tensor], output: Any) -> None:
        """Generate a summary for each prompt and compare it with the reference."""
        labels, visible = batch["labels"], batch["attention_mask"].bool()
        prompts = [
            ids[seen & (label == IGNORED)] for ids, seen, label in zip(batch["input_ids"], visible, labels, strict=True)
        ]
        references = [label[label != IGNORED] for label in labels]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        longest = max(len(prompt) for prompt in prompts)
        ids = labels.new_full((len(prompts), longest), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # on the left, so that every summary starts in the same column
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        generated = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=pad
        )[:, longest:]
        decode = self.tokenizer.batch_decode
        self.update(decode(generated, skip_special_tokens=True), decode(references, skip_special_tokens=True))
