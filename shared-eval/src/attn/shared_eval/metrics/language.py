"""Language models: likelihood of tokens, and facts found at every depth of a context."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from attn.shared_eval.metrics.states import add_counts, add_sums, ratio, require_equal_lengths

IGNORED = -100


class NatsPerToken(Metric):
    """Mean negative log-likelihood of the predicted tokens, in nats: a sum over tokens, in float64, by their number.

    NaN without tokens. A token's likelihood may be as small as it likes; torchmetrics' `Perplexity` is infinite when
    one underflows.
    """

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        add_sums(self, "nats")
        add_counts(self, "tokens")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in logits ``[batch, tokens, vocabulary]`` and the labels ``[batch, tokens]`` they predict; -100 is none.

        Raises:
            ValueError: if labels have not the shape of the logits without their last axis.
        """
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels must be of shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
        log_likelihood = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        kept = labels != IGNORED
        chosen = log_likelihood.gather(-1, labels.where(kept, 0).unsqueeze(-1)).squeeze(-1)
        self.nats -= chosen[kept].sum(dtype=torch.float64)
        self.tokens += kept.sum()

    def compute(self) -> Tensor:
        """Nats per token."""
        return ratio(self.nats, self.tokens)


class TokenPerplexity(NatsPerToken):
    """The exponential of `NatsPerToken`."""

    def compute(self) -> Tensor:
        """Perplexity per token."""
        return super().compute().exp()


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Share of the references that the answer contains, in any case (RULER's score of needles).

    Raises:
        ValueError: if there are no references.
    """
    if not references:
        raise ValueError("references must hold at least one string, got none")
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


def string_match_any(answer: str, references: Sequence[str]) -> float:
    """1 if the answer contains one of the references, in any case, else 0 (RULER's score of questions).

    Raises:
        ValueError: if there are no references.
    """
    return float(string_match_all(answer, references) > 0)


class NeedleAccuracy(Metric):
    """Mean score of retrieval by the depth of the needle in its context, a fraction.

    ``compute`` returns ``accuracy`` over all samples, ``worst`` and ``depth_0`` ... of the bins, shallowest first, each
    NaN without samples; ``worst`` is that of the bins that have some.

    Args:
        bins: number of equal parts of the context.

    Raises:
        ValueError: if bins is not positive.
    """

    full_state_update = False
    higher_is_better = True
    scores: Tensor
    samples: Tensor

    def __init__(self, bins: int = 10, **options: Any) -> None:
        super().__init__(**options)
        if bins < 1:
            raise ValueError(f"bins must be positive, got {bins}")
        self.bins = bins
        add_sums(self, "scores", shape=(bins,))
        add_counts(self, "samples", shape=(bins,))

    def update(self, scores: Sequence[float] | Tensor, depths: Sequence[float] | Tensor) -> None:
        """Take in samples.

        Args:
            scores: of each, in [0, 1]: whether the answer is right, or `string_match_all`.
            depths: position of each needle as a fraction of the context, in [0, 1]; 0 is its beginning.

        Raises:
            ValueError: if the lengths differ, or a number is outside its range.
        """
        require_equal_lengths(scores=scores, depths=depths)
        for score, depth in zip(map(float, scores), map(float, depths), strict=True):
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score}")
            if not 0 <= depth <= 1:
                raise ValueError(f"depths must lie in [0, 1], got {depth}")
            place = min(int(depth * self.bins), self.bins - 1)
            self.scores[place] += score
            self.samples[place] += 1

    def compute(self) -> dict[str, Tensor]:
        """The figures, see the class."""
        accuracies = ratio(self.scores, self.samples)
        seen = accuracies[self.samples > 0]
        return {
            "accuracy": ratio(self.scores.sum(), self.samples.sum()),
            "worst": seen.min() if len(seen) else accuracies.new_full((), torch.nan),
            **{f"depth_{place}": accuracy for place, accuracy in enumerate(accuracies)},
        }
