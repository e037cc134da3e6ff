"""What an edit puts in the place of attention in chosen heads: one frozen dataclass per edit operator.

An edit does what the operator of the same name does; arguments by head are those of the chosen heads, in the order in
which they are chosen. A callable with the same signature is an edit too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from attn.core_kernels.edit import probabilities, scores
from attn.core_kernels.edit.probabilities.api import Target


@dataclass(frozen=True)
class MixValues:
    """`mix_values`: interpolation of heads towards a trivial map.

    Args:
        mix: ``[heads]`` or ``[batch, heads]``, in [0, 1].
        target: ``"value"``, ``"own_logit"``, ``"own_mass"``, ``"uniform"``, ``"mean_query"`` or ``"argmax"``.
        rows: int64 indices of the queries that are edited, ``[rows]`` or ``[batch, rows]``; None for all.
    """

    mix: Tensor
    target: Target = "value"
    rows: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        return probabilities.mix_values(query, key, value, self.mix, target=self.target, rows=self.rows, **rule)


@dataclass(frozen=True)
class ScaleKeys:
    """`scale_keys`: chosen keys keep a share of their probability, the row's others get the rest.

    Args:
        keys: bool ``[batch or 1, heads or 1, keys]``; keys that are generated later are not chosen.
        beta: factor in [0, 1].
    """

    keys: Tensor
    beta: float

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        return probabilities.scale_keys(query, key, value, _grown(self.keys, key), self.beta, **rule)


@dataclass(frozen=True)
class SwapMap:
    """`swap_map`: a batch row takes the map of another.

    Args:
        source: int64 ``[batch]``, the batch row whose map each one takes.
    """

    source: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        return probabilities.swap_map(query, key, value, self.source, **rule)


@dataclass(frozen=True)
class RemapColumns:
    """`remap_columns`: columns of the map come from another batch row.

    Args:
        source: int64 ``[batch]``, the batch row whose map each one takes.
        mapping: ``[batch or 1, keys, keys]``; None for the identity.
        blend: ``[batch or 1, keys]``, in [0, 1]; None for 1.
        weights: ``[batch or 1, keys]``; None for 1.
    """

    source: Tensor
    mapping: Tensor | None = None
    blend: Tensor | None = None
    weights: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        columns: dict[str, Any] = {"blend": self.blend, "weights": self.weights, **rule}
        return probabilities.remap_columns(query, key, value, self.source, self.mapping, **columns)


@dataclass(frozen=True)
class EditMap:
    """`edit_map`: the map goes through any function; stores it.

    Args:
        fn: from the map ``[batch, heads, queries, keys]`` to one of that shape.
    """

    fn: Callable[[Tensor], Tensor]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        return probabilities.edit_map(query, key, value, self.fn, **rule)


@dataclass(frozen=True)
class DecayOutsideWindow:
    """`decay_outside_window`: scores shrink beyond a distance.

    Args:
        half_window: distance up to which scores stay.
        alpha: factor beyond it.
        period: distance between risk zones; None for none.
        risk_half_width: half the width of a risk zone.
        beta: factor in risk zones.
        places: int64 ``[keys]``, where each key stands; None for the token's index.
    """

    half_window: int
    alpha: float = 0.9
    period: float | None = None
    risk_half_width: float = 0
    beta: float = 0.6
    places: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        zones: dict[str, Any] = {"period": self.period, "risk_half_width": self.risk_half_width, "beta": self.beta}
        decay = {**zones, "places": self.places, **rule}
        return scores.decay_outside_window(query, key, value, self.half_window, self.alpha, **decay)


@dataclass(frozen=True)
class BoostKeys:
    """`boost_keys`: scores at chosen keys grow by a share of their magnitude.

    Args:
        keys: bool ``[batch or 1, heads or 1, keys]``; keys that are generated later are not chosen.
        gain: the share, one number or by head, as `boost_keys` takes it.
        rows: int64 indices of the queries that are edited, ``[rows]`` or ``[batch, rows]``; None for all.
    """

    keys: Tensor
    gain: float | Tensor
    rows: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **rule: Any) -> Tensor:
        """The output of the edited map, ``[batch, heads, queries, value_dim]``."""
        return scores.boost_keys(query, key, value, _grown(self.keys, key), self.gain, rows=self.rows, **rule)


def _grown(keys: Tensor, key: Tensor) -> Tensor:
    """A choice of keys with the keys that came after it, which are not chosen."""
    later = key.shape[2] - keys.shape[-1]
    return F.pad(keys, (0, later)) if later > 0 else keys
