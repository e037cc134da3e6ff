"""Which keys a query sees: the one definition of causal order, sliding windows and key padding for all operators."""

import dataclasses

import torch
from torch import Tensor

from attn.core_kernels.checks import check_key_mask, check_scale, check_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """The rule ``visible(i, j)``: may query ``i`` attend to key ``j``.

    Query ``i`` stands at position ``p = i + offset`` on the key axis. It sees key ``j`` if all of these hold:

    - ``j <= p``, if ``causal``;
    - ``abs(p - j) < window``, if there is a window: it counts the query's own key, so a causal window of ``w`` is at
      most ``w`` keys and a symmetric one at most ``2 * w - 1``;
    - ``key_mask[batch, j]``, if there is a key mask.

    Args:
        num_queries: number of queries.
        num_keys: number of keys.
        offset: position of query 0; `make_visibility` has ``num_keys - num_queries``, which puts the last query level
            with the last key, as in decoding with a cache.
        causal: whether keys after the query's position are hidden.
        window: distance from which keys are hidden; None for no limit.
        key_mask: bool ``[batch, keys]``, True where the key may be seen; None for all.
        positions: int64 ``[batch or 1, queries]``, the positions of queries that are no run; None for a run.
    """

    num_queries: int
    num_keys: int
    offset: int
    causal: bool = False
    window: int | None = None
    key_mask: Tensor | None = None
    positions: Tensor | None = None

    def as_arguments(self) -> tuple[int, bool, int | None, Tensor | None, Tensor | None]:
        """Offset, causal, window, key_mask and positions: the rule as a registered operator takes it."""
        return self.offset, self.causal, self.window, self.key_mask, self.positions

    @classmethod
    def from_arguments(
        cls,
        query: Tensor,
        key: Tensor,
        offset: int,
        causal: bool,
        window: int | None,
        key_mask: Tensor | None,
        positions: Tensor | None,
    ) -> "Visibility":
        """The rule for queries and keys from what `as_arguments` gives."""
        return cls(
            num_queries=query.shape[2],
            num_keys=key.shape[2],
            offset=offset,
            causal=causal,
            window=window,
            key_mask=key_mask,
            positions=positions,
        )

    def select_rows(self, rows: Tensor) -> "Visibility":
        """The rule for chosen queries, given by their indices, int64 ``[batch or 1, rows]``."""
        return dataclasses.replace(self, num_queries=rows.shape[-1], positions=rows + self.offset)

    def select_span(self, start: int, stop: int) -> "Visibility":
        """The rule for the keys from ``start`` to ``stop - 1``, which become keys 0 and up."""
        return dataclasses.replace(
            self,
            num_keys=stop - start,
            offset=self.offset - start,
            key_mask=None if self.key_mask is None else self.key_mask[:, start:stop],
            positions=None if self.positions is None else self.positions - start,
        )

    def repeat_batch(self, repeats: int) -> "Visibility":
        """The rule with every batch row repeated, for a batch axis that was merged with heads."""
        return dataclasses.replace(
            self,
            key_mask=None if self.key_mask is None else self.key_mask.repeat_interleave(repeats, 0),
            positions=_repeat(self.positions, repeats),
        )

    def select_batch(self, batch: slice) -> "Visibility":
        """The rule for a run of batch rows."""
        shared = self.positions is None or self.positions.shape[0] == 1
        return dataclasses.replace(
            self,
            key_mask=None if self.key_mask is None else self.key_mask[batch],
            positions=self.positions if shared or self.positions is None else self.positions[batch],
        )

    def row_positions(self, rows: slice, device: torch.device) -> Tensor:
        """Positions of a run of queries, int64 ``[batch or 1, rows]``."""
        if self.positions is not None:
            return self.positions[:, rows]
        return torch.arange(rows.start + self.offset, rows.stop + self.offset, device=device)[None]

    def position_range(self, rows: slice) -> tuple[int, int]:
        """Lowest and highest position in a run of at least one query."""
        if self.positions is None:
            return rows.start + self.offset, rows.stop - 1 + self.offset
        lowest, highest = self.positions[:, rows].aminmax()
        return int(lowest), int(highest)

    def key_range(self, rows: slice) -> slice:
        """The run of keys outside which order and window hide everything from a run of queries; it may be empty."""
        lowest, highest = self.position_range(rows)
        start, stop = 0, self.num_keys
        if self.causal:
            stop = min(stop, highest + 1)
        if self.window is not None:
            start = max(start, lowest - self.window + 1)
            stop = min(stop, highest + self.window)
        return slice(start, stop) if start < stop else slice(0, 0)

    def hide_(self, logits: Tensor, rows: slice, keys: slice) -> Tensor:
        """Write -inf over hidden logits, in place, and return them.

        Args:
            logits: ``[batch, heads, rows, keys]`` of these rows and keys.
            rows: a run of at least one query.
            keys: a run of keys.
        """
        lowest, highest = self.position_range(rows)
        first, last = keys.start, keys.stop  # the keys that no row of the run loses to order or window
        if self.causal:
            last = min(last, lowest + 1)
        if self.window is not None:
            first = max(first, highest - self.window + 1)
            last = min(last, lowest + self.window)
        first = min(first, keys.stop)
        last = max(last, first)
        for part in (slice(keys.start, first), slice(last, keys.stop)):
            if part.start < part.stop:
                ragged = logits[..., part.start - keys.start : part.stop - keys.start]
                ragged.masked_fill_(~self._in_reach(rows, part, logits.device)[:, None], -torch.inf)
        if self.key_mask is not None:
            logits.masked_fill_(~self.key_mask[:, None, None, keys], -torch.inf)
        return logits

    def mask(self, rows: slice, keys: slice, device: torch.device) -> Tensor:
        """The rule for a run of queries and a run of keys as bools, ``[batch or 1, rows, keys]``."""
        visible = self._in_reach(rows, keys, device)
        return visible if self.key_mask is None else visible & self.key_mask[:, None, keys]

    def whole_mask(self, device: torch.device) -> Tensor:
        """The rule as bools, ``[batch or 1, 1, queries, keys]``: memory grows with queries times keys."""
        return self.mask(slice(0, self.num_queries), slice(0, self.num_keys), device)[:, None]

    def sum_seeing_rows(self, weights: Tensor) -> Tensor:
        """For every key the sum of the weights of the queries that see it, without the mask of queries times keys.

        Args:
            weights: ``[batch or 1, ..., queries]``; the queries must be a run.

        Returns:
            ``[batch or 1, ..., keys]``.
        """
        position = torch.arange(self.num_keys, device=weights.device)
        first, last = torch.zeros_like(position), torch.full_like(position, self.num_queries)
        if self.causal:
            first = position - self.offset
        if self.window is not None:
            first = torch.maximum(first, position - self.offset - self.window + 1)
            last = position - self.offset + self.window
        first, last = (bound.clamp(0, self.num_queries) for bound in (first, last))
        until = torch.nn.functional.pad(weights.double().cumsum(-1), (1, 0))
        total = (until[..., last] - until[..., first]).to(weights.dtype)
        if self.key_mask is not None:
            total = total * self.key_mask.unflatten(0, (-1, *[1] * (weights.ndim - 2)))
        return total

    def _in_reach(self, rows: slice, keys: slice, device: torch.device) -> Tensor:
        position = self.row_positions(rows, device)[:, :, None]
        key = torch.arange(keys.start, keys.stop, device=device)
        visible = torch.ones(position.shape[0], position.shape[1], len(key), dtype=torch.bool, device=device)
        if self.causal:
            visible &= key <= position
        if self.window is not None:
            visible &= (key - position).abs() < self.window
        return visible


def make_visibility(
    query: Tensor, key: Tensor, *, causal: bool, window: int | None, key_mask: Tensor | None
) -> Visibility:
    """The rule for queries and keys, the last query level with the last key.

    Args:
        query: ``[batch, heads, queries, head_dim]``, checked.
        key: ``[batch, key_heads, keys, head_dim]``, checked.
        causal: hide the keys after each query.
        window: hide keys at this distance and further, at least 1; None for no limit.
        key_mask: bool ``[batch, keys]``, True where the key may be seen; None for all.

    Raises:
        TypeError: if an argument has the wrong type, or the mask is not boolean.
        ValueError: if the window is below 1, or the mask's shape or device is not key's.
    """
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    if window is not None:
        check_size("window", window)
    check_key_mask(key_mask, key)
    num_queries, num_keys = query.shape[2], key.shape[2]
    return Visibility(
        num_queries=num_queries,
        num_keys=num_keys,
        offset=num_keys - num_queries,
        causal=causal,
        window=window,
        key_mask=key_mask,
    )


def check_rule(
    query: Tensor, key: Tensor, *, causal: bool, window: int | None, key_mask: Tensor | None, scale: float | None
) -> tuple[float, Visibility, Tensor]:
    """Scale, visibility, and the key with zeros where it may not be seen, so that nothing there can spread.

    Args:
        query: ``[batch, heads, queries, head_dim]``, checked.
        key: ``[batch, key_heads, keys, head_dim]``, checked.
        causal: as for `make_visibility`.
        window: as for `make_visibility`.
        key_mask: as for `make_visibility`.
        scale: factor of the scores; None for ``head_dim ** -0.5``.

    Raises:
        TypeError: if an argument has the wrong type, or the mask is not boolean.
        ValueError: if there is no key, the scale is not finite, or as for `make_visibility`.
    """
    if key.shape[2] < 1:
        raise ValueError(f"key must have at least one token, got {list(key.shape)}")
    visibility = make_visibility(query, key, causal=causal, window=window, key_mask=key_mask)
    scale = float(check_scale(scale, query.shape[3]))
    if key_mask is not None:
        key = hide_tokens(key, key_mask)
    return scale, visibility, key


def hide_tokens(rows: Tensor, key_mask: Tensor) -> Tensor:
    """Rows ``[batch, heads, tokens, width]`` with zeros where the mask ``[batch, tokens]`` is False."""
    return rows.masked_fill(~key_mask[:, None, :, None], 0)


def _repeat(positions: Tensor | None, repeats: int) -> Tensor | None:
    if positions is None or positions.shape[0] == 1:
        return positions
    return positions.repeat_interleave(repeats, 0)
