"""The edits before the softmax in PyTorch, a tile of rows at a time, so that memory grows with queries plus keys.

Each multiplies a score by a slope that depends on its sign alone, so that the slope is also its derivative. Registered
operators: opaque to ``torch.compile``, and computed in float32 (float64 for float64) under autocast too. The last
arguments of all are the scale and what `Visibility.as_arguments` gives.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attn.core_kernels.edit.scores.decay import Decay
from attn.core_kernels.observe.softmax_map.tiles import LogitTiles, Tile, attend, attend_backward, merge_heads
from attn.core_kernels.visibility import Visibility

MOST_RUNS = 8  # of keys with one slope that are treated apart


class DecaySlopes:
    """The slopes of the decay; their factors are computed once for all heads of a run of rows.

    Args:
        places: of queries and of keys.
        decay: the rule.
        precision: dtype of the slopes.
    """

    def __init__(self, places: tuple[Tensor, Tensor], decay: Decay, precision: torch.dtype) -> None:
        self._of_query, self._of_key = places
        self._decay = decay
        self._numbers = decay.numbers(torch.float64, places[1].device)
        self._precision = precision
        self._last: tuple[slice, slice, list[tuple[slice, Tensor]]] | None = None

    def __call__(self, tile: Tile) -> Iterator[tuple[slice, Tensor]]:
        """Keys wholly within the window are left out; a run far outside has a single factor."""
        for part, factor in self._factors(tile.rows, tile.keys):
            yield part, torch.where(tile.logits[..., part] > 0, factor, 1)

    def _factors(self, rows: slice, keys: slice) -> list[tuple[slice, Tensor]]:
        if self._last is None or self._last[:2] != (rows, keys):
            factor = self._decay.factor(self._of_query[rows, None], self._of_key[keys], self._numbers)
            factor = factor.to(self._precision)
            first = factor[:1]
            uniform = (factor == first).all(0)
            # a new run starts where a uniform column differs from the one before, or where uniformity ends or begins
            starts = uniform[1:] != uniform[:-1]
            starts |= uniform[1:] & (first[0, 1:] != first[0, :-1])
            ends = [0, *(starts.nonzero()[:, 0] + 1).tolist(), factor.shape[1]]
            if len(ends) > MOST_RUNS + 1:
                ends = [0, factor.shape[1]]
            runs = [slice(start, stop) for start, stop in pairwise(ends)]
            parts = []
            for run in runs:
                constant = bool(uniform[run].all()) and bool((first[0, run] == first[0, run.start]).all())
                of_run = factor[0, run.start] if constant else factor[:, run]
                if of_run.ndim or of_run != 1:
                    parts.append((run, of_run))
            self._last = rows, keys, parts
        return self._last[2]


class BoostSlopes:
    """The slopes of the boost: 1 plus or minus the gain.

    Args:
        gain: ``[batch or 1, heads or 1, keys]``.
        query, key: whose heads the tiles merge.
        precision: dtype of the slopes.
    """

    def __init__(self, gain: Tensor, query: Tensor, key: Tensor, precision: torch.dtype) -> None:
        gain = gain.to(precision).expand(*query.shape[:2], -1)
        self._gain = merge_heads(gain, key.shape[1])[:, :, None]

    def __call__(self, tile: Tile) -> Iterator[tuple[slice, Tensor]]:
        """All keys at once; hidden scores keep the slope 1, for infinity times zero is no number."""
        sign = tile.logits.sign().masked_fill_(tile.logits == -torch.inf, 0)
        yield slice(0, tile.logits.shape[-1]), sign.mul_(self._gain[tile.heads, :, :, tile.keys]).add_(1)


def _tiles(query: Tensor, key: Tensor, scale: float, rule: tuple[Any, ...]) -> LogitTiles:
    return LogitTiles(query, key, scale, Visibility.from_arguments(query, key, *rule))


def _fake_attend(query, _key, value, *_rest):  # type: ignore[no-untyped-def]
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    return out, query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


def _fake_backward(_grad_out, _out, _lse, query, key, value, *_rest):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


# --- decay_outside_window


@torch.library.custom_op("attn::edit_decay_outside_window", mutates_args=())
def decay_outside_window(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    half_window: int,
    alpha: float,
    period: float | None,
    risk_half_width: float,
    beta: float,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output in query's dtype and log-sum-exp of the edited scores."""
    with torch.autocast(query.device.type, enabled=False):
        tiles = _tiles(query, key, scale, (offset, causal, window, key_mask, positions))
        decay = Decay(half_window, alpha, period, risk_half_width, beta)
        return attend(tiles, value, DecaySlopes((query_places, key_places), decay, tiles.precision))


@torch.library.custom_op("attn::edit_decay_outside_window_backward", mutates_args=())
def decay_outside_window_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    half_window: int,
    alpha: float,
    period: float | None,
    risk_half_width: float,
    beta: float,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    with torch.autocast(query.device.type, enabled=False):
        tiles = _tiles(query, key, scale, (offset, causal, window, key_mask, positions))
        decay = Decay(half_window, alpha, period, risk_half_width, beta)
        slopes = DecaySlopes((query_places, key_places), decay, tiles.precision)
        return attend_backward(tiles, grad_out, None, query, key, value, out, lse, slopes)


# --- boost_keys


@torch.library.custom_op("attn::edit_boost_keys", mutates_args=())
def boost_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gain: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output in query's dtype and log-sum-exp of the edited scores; ``gain [batch or 1, heads or 1, keys]``."""
    with torch.autocast(query.device.type, enabled=False):
        tiles = _tiles(query, key, scale, (offset, causal, window, key_mask, positions))
        return attend(tiles, value, BoostSlopes(gain, query, key, tiles.precision))


@torch.library.custom_op("attn::edit_boost_keys_backward", mutates_args=())
def boost_keys_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gain: Tensor,
    scale: float,
    offset: int,
    causal: bool,
    window: int | None,
    key_mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    with torch.autocast(query.device.type, enabled=False):
        tiles = _tiles(query, key, scale, (offset, causal, window, key_mask, positions))
        slopes = BoostSlopes(gain, query, key, tiles.precision)
        return attend_backward(tiles, grad_out, None, query, key, value, out, lse, slopes)


def _register(operator: Any, backward: Any) -> None:
    """Fakes and the gradient of an operator whose first three arguments alone can be differentiated."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*output, *tensors)
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]

    def differentiate(ctx: Any, grad_out: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        left = iter(tensors)
        inputs = [next(left) if other is None else other[0] for other in ctx.others]
        return *backward(grad_out, out, lse, *inputs), *[None] * (len(inputs) - 3)

    operator.register_fake(_fake_attend)
    backward.register_fake(_fake_backward)
    operator.register_autograd(differentiate, setup_context=save)


_register(decay_outside_window, decay_outside_window_backward)
_register(boost_keys, boost_keys_backward)
