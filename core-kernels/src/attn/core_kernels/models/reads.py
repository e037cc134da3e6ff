"""What a probe reads off the softmax map of a layer: one frozen dataclass per observe operator.

A read computes what the operator of the same name does, for every call of the layers that it is given to. The result
is filed under the read's field: the class's name in snake case, or ``name``, which tells two reads of a class apart.
Reads do not enter the graph; `Submap` and `MeanMap` do with ``gradient=True``.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attn.core_kernels.models.attention_call import AttentionCall
from attn.core_kernels.observe import softmax_map
from attn.core_kernels.observe.softmax_map.api import Reduce


@dataclass(frozen=True, kw_only=True)
class Read(ABC):
    """A statistic or a part of the softmax map.

    Args:
        name: the field of the results; None for the class's name in snake case.
    """

    name: str | None = None
    uses_lse: ClassVar[bool] = False

    @property
    def field(self) -> str:
        """Where the results are filed."""
        return self.name or re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def keeps_graph(self) -> bool:
        """Whether the result can be differentiated."""
        return False

    def __call__(self, call: AttentionCall, lse: Tensor | None) -> Any:
        """The result for one call.

        Args:
            call: the attention that is read.
            lse: ``[batch, heads, queries]``, the log-sum-exp of its rows if it is known.
        """
        if self.keeps_graph:
            return self.compute(call, lse)
        with torch.no_grad():
            return self.compute(call.detach(), lse)

    @abstractmethod
    def compute(self, call: AttentionCall, lse: Tensor | None) -> Any:
        """The operator's result."""


@dataclass(frozen=True)
class KeyMass(Read):
    """`key_mass`: the attention that each key receives, ``[batch, heads, (sets,) keys]``.

    Args:
        row_weights: weights of the queries, as `key_mass` takes them; None for ones. Queries at right padding see keys
            and count unless their weight is 0.
    """

    row_weights: Tensor | None = None
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        return softmax_map.key_mass(call.query, call.key, self.row_weights, lse=lse, **call.rule)


@dataclass(frozen=True)
class KeyMoments(Read):
    """`key_moments`: mean and variance of the attention that each key receives, as a `KeyMoments` result.

    Args:
        row_weights: weights of the queries, as `key_mass` takes them; None for ones.
    """

    row_weights: Tensor | None = None
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> softmax_map.KeyMoments:  # noqa: D102
        return softmax_map.key_moments(call.query, call.key, self.row_weights, lse=lse, **call.rule)


@dataclass(frozen=True)
class SuffixKeyMass(Read):
    """`suffix_key_mass`: column sums over row suffixes, ``[batch, (heads,) query_blocks, keys]``.

    Args:
        block_size: rows from one suffix to the next.
        reduce: ``"none"``, or ``"mean_heads"`` for the mean over heads.
    """

    block_size: int
    reduce: Reduce = "none"
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        arguments: dict[str, Any] = {"block_size": self.block_size, "reduce": self.reduce, "lse": lse}
        return softmax_map.suffix_key_mass(call.query, call.key, **arguments, **call.rule)


@dataclass(frozen=True)
class RowStats(Read):
    """`row_stats`: log-sum-exp, largest logit, its key and entropy of every row, as a `RowStats` result.

    Args:
        span: ``(start, stop)``: use these keys alone, normalised over them; None for all.
    """

    span: tuple[int, int] | None = None

    def compute(self, call: AttentionCall, lse: Tensor | None) -> softmax_map.RowStats:  # noqa: D102
        return softmax_map.row_stats(call.query, call.key, span=self.span, **call.rule)


@dataclass(frozen=True)
class RowEntropy(Read):
    """Entropy of every row of the map in nats, ``[batch, heads, queries]``.

    Args:
        span: ``(start, stop)``: use these keys alone, normalised over them; None for all.
    """

    span: tuple[int, int] | None = None

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        return softmax_map.row_stats(call.query, call.key, span=self.span, **call.rule).entropy


@dataclass(frozen=True)
class RowLse(Read):
    """Log-sum-exp of the visible logits of every row, natural log, ``[batch, heads, queries]``.

    Args:
        span: ``(start, stop)``: use these keys alone; None for all, which costs nothing beside the attention itself.
    """

    span: tuple[int, int] | None = None
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        if self.span is None and lse is not None:
            return lse.detach()
        return softmax_map.row_stats(call.query, call.key, span=self.span, **call.rule).lse


@dataclass(frozen=True)
class Submap(Read):
    """`submap`: the map at chosen rows and columns, ``[batch, (heads,) rows, columns]``.

    Args:
        rows: int64 indices of queries, ``[rows]`` or ``[batch, rows]``; None for all.
        columns: int64 indices of keys, likewise.
        reduce: ``"none"``, or ``"mean_heads"`` for the mean over heads.
        gradient: keep the result in the graph.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    reduce: Reduce = "none"
    gradient: bool = False

    @property
    def keeps_graph(self) -> bool:
        """Whether the result can be differentiated."""
        return self.gradient

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        return softmax_map.submap(call.query, call.key, self.rows, self.columns, reduce=self.reduce, **call.rule)


@dataclass(frozen=True)
class MeanMap(Read):
    """`mean_map`: the map averaged over heads, ``[batch, queries, keys]``.

    Args:
        gradient: keep the result in the graph.
    """

    gradient: bool = False

    @property
    def keeps_graph(self) -> bool:
        """Whether the result can be differentiated."""
        return self.gradient

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        return softmax_map.mean_map(call.query, call.key, **call.rule)


@dataclass(frozen=True)
class TileStats(Read):
    """`tile_stats`: sum, maximum and counts of every tile of the map, as a `TileStats` result.

    Args:
        block_size: rows and columns of a tile, one number for both or a pair.
        eps: probability below which an entry is counted.
    """

    block_size: int | tuple[int, int]
    eps: float
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> softmax_map.TileStats:  # noqa: D102
        arguments: dict[str, Any] = {"block_size": self.block_size, "eps": self.eps, "lse": lse}
        return softmax_map.tile_stats(call.query, call.key, **arguments, **call.rule)


@dataclass(frozen=True)
class MassByDistance(Read):
    """`mass_by_distance`: attention mass of every row in bands of distance, ``[batch, heads, queries, bands]``.

    Args:
        edges: increasing distances at which the bands start.
        places: int64 ``[keys]``, where each key stands; None for the token's index.
    """

    edges: Sequence[int]
    places: Tensor | None = None
    uses_lse: ClassVar[bool] = True

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        arguments: dict[str, Any] = {"places": self.places, "lse": lse}
        return softmax_map.mass_by_distance(call.query, call.key, self.edges, **arguments, **call.rule)


@dataclass(frozen=True)
class LogitByDistance(Read):
    """`logit_by_distance`: mean visible logit in bands of distance, ``[batch, heads, bands]``.

    Args:
        edges: increasing distances at which the bands start.
        places: int64 ``[keys]``, where each key stands; None for the token's index.
    """

    edges: Sequence[int]
    places: Tensor | None = None

    def compute(self, call: AttentionCall, lse: Tensor | None) -> Tensor:  # noqa: D102
        return softmax_map.logit_by_distance(call.query, call.key, self.edges, places=self.places, **call.rule)
