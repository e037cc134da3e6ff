"""What the observe operators return when it is more than one tensor."""

from typing import NamedTuple

from torch import Tensor


class KeyMoments(NamedTuple):
    """First and second moments of the attention that keys receive; every field ``[batch, heads, (sets,) keys]``.

    Args:
        weight: sum of the weights of the rows that see the key.
        mass: weighted sum of the probabilities.
        square: weighted sum of the squared probabilities.
    """

    weight: Tensor
    mass: Tensor
    square: Tensor

    @property
    def mean(self) -> Tensor:
        """Weighted mean probability over the rows that see the key; NaN for a key that no row sees."""
        return self.mass / self.weight

    @property
    def variance(self) -> Tensor:
        """Weighted population variance of the probability over the rows that see the key; NaN where none does."""
        return (self.square / self.weight - self.mean.square()).clamp(min=0)


class RowStats(NamedTuple):
    """Statistics of each row of the map; every field ``[batch, heads, queries]``.

    Args:
        lse: log-sum-exp of the visible logits, natural log; -inf if there is none.
        max: largest visible logit; -inf if there is none. The largest probability is ``exp(max - lse)``.
        argmax: int64 index of that key, the first of equals; -1 if no key is visible.
        entropy: entropy of the row in nats; 0 if no key is visible.
    """

    lse: Tensor
    max: Tensor
    argmax: Tensor
    entropy: Tensor


class TileStats(NamedTuple):
    """Statistics of each tile of the map; every field ``[batch, heads, query_tiles, key_tiles]``.

    Args:
        sum: sum of the probabilities.
        max: largest probability.
        below: int64 number of visible entries below ``eps``.
        visible: int64 number of visible entries, which a ragged or partly hidden tile has fewer of.
    """

    sum: Tensor
    max: Tensor
    below: Tensor
    visible: Tensor
