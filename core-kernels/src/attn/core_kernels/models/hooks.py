"""Reads and edits of one layer, and the attention with them in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from attn.core_kernels.models.attention_call import AttentionCall
from attn.core_kernels.models.reads import Read
from attn.core_kernels.models.records import Seen

Edit = Callable[..., Tensor]
"""What takes the place of attention in the chosen heads: ``(query, key, value, *, causal, window, key_mask, scale)``
to ``[batch, heads, queries, value_dim]``."""


@dataclass(frozen=True, kw_only=True)
class ReadHook:
    """The reads of one probe at one layer."""

    layer: int
    heads: tuple[int, ...] | None
    reads: tuple[Read, ...]
    seen: Seen

    def wanted(self) -> list[Read]:
        """The reads to be done at this call: none in a backward pass, which calls a checkpointed layer once more."""
        # torch.utils.checkpoint itself has no other way to know that autograd is at work.
        if torch._C._current_graph_task_id() != -1:
            return []
        return [read for read in self.reads if self.seen.wants(read.field, self.layer)]

    def read(self, call: AttentionCall, lse: Tensor | None) -> None:
        """Do the reads and file their results."""
        if not (wanted := self.wanted()):
            return
        if self.heads is not None:
            call = call.select_heads(self.heads)
            lse = None if lse is None else lse[:, list(self.heads)]
        for read in wanted:
            self.seen.add(read.field, self.layer, read(call, lse))


@dataclass(frozen=True, kw_only=True)
class EditHook:
    """An edit at one layer."""

    layer: int
    heads: tuple[int, ...] | None
    edit: Edit

    def apply(self, call: AttentionCall) -> Tensor:
        """The edited output of the chosen heads."""
        out = self.edit(call.query, call.key, call.value, **call.rule)
        expected = [*call.query.shape[:3], call.value.shape[3]]
        if not isinstance(out, Tensor) or list(out.shape) != expected:
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"edit must return [batch, heads, queries, value_dim] = {expected} at layer {self.layer}, got {got}"
            )
        return out.to(call.query.dtype)


Hook = ReadHook | EditHook


def observe(hooks: Sequence[Hook], call: AttentionCall, lse: Tensor | None = None) -> None:
    """Do all reads among the hooks."""
    for hook in hooks:
        if isinstance(hook, ReadHook):
            hook.read(call, lse)


def attend(hooks: Sequence[Hook], call: AttentionCall) -> Tensor:
    """Attention with reads and edits, ``[batch, heads, queries, value_dim]``.

    Reads see the map that queries and keys give, before the edits of their own layer, in whatever order the blocks
    were entered.

    Raises:
        ValueError: if two edits are given the same head.
    """
    edits = [hook for hook in hooks if isinstance(hook, EditHook)]
    wanted = chain.from_iterable(hook.wanted() for hook in hooks if isinstance(hook, ReadHook))
    whole = not edits or any(read.uses_lse for read in wanted)
    out, lse = call.attend() if whole else (None, None)
    observe(hooks, call, lse)
    if out is not None and not edits:
        return out
    every = range(call.query.shape[1])
    edited = [list(every) if hook.heads is None else list(hook.heads) for hook in edits]
    taken = list(chain.from_iterable(edited))
    if twice := sorted({head for head in taken if taken.count(head) > 1}):
        raise ValueError(f"heads of nested edits must differ, got {twice} twice at layer {edits[0].layer}")
    parts = [hook.apply(call.select_heads(heads)) for hook, heads in zip(edits, edited, strict=True)]
    if untouched := [head for head in every if head not in taken]:
        parts.append(out[:, untouched] if out is not None else call.select_heads(untouched).attend()[0])
    if len(parts) == 1 and taken == list(every):
        return parts[0]
    order = torch.as_tensor([*taken, *untouched], device=call.query.device).argsort()
    return torch.cat(parts, 1)[:, order]
