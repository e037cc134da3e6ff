"""The specification of the edits after the softmax: the map, dense, changed, and applied to the values.

Every function works in float32, float64 for float64, can be differentiated, and needs queries times keys of memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attn.core_kernels.edit.arguments import Attention
from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.observe.softmax_map import reference


def edit_map(attention: Attention, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of a map that went through ``edit``."""
    probability = edit(softmax_map(attention))
    value = repeat_heads(attention.value, attention.query.shape[1])
    return (probability @ value.to(probability.dtype)).to(attention.query.dtype)


def softmax_map(attention: Attention) -> Tensor:
    """The map ``[batch, heads, queries, keys]``, zero where hidden."""
    return reference.softmax_map(attention.query, attention.key, attention.scale, attention.visibility)[0]


def mix_values(attention: Attention, mix: Tensor, target: str, rows: Tensor) -> Tensor:
    """Interpolation between the map and its target; ``mix [batch or 1, heads]``, ``rows [batch or 1, queries]``."""
    share = mix.to(attention.precision)[:, :, None, None] * rows[:, None, :, None]
    other = TARGETS[target](attention, rows)
    return edit_map(attention, lambda probability: (1 - share) * probability + share * other)


def own_key(attention: Attention, _rows: Tensor) -> Tensor:
    """One at the key level with the query, zero in a row whose own key is hidden."""
    return (_own(attention) & attention.visibility.whole_mask(attention.query.device)).to(attention.precision)


def own_logit(attention: Attention, rows: Tensor) -> Tensor:
    """The map where, of the keys level with edited queries, only a query's own has kept its logit."""
    _, logits, _ = reference.softmax_map(attention.query, attention.key, attention.scale, attention.visibility)
    kept = logits.masked_fill(_level_with(rows, attention)[:, None, None] & ~_own(attention), -torch.inf)
    none = ~(kept > -torch.inf).any(-1, keepdim=True)
    return kept.masked_fill(none, 0).softmax(-1) * ~none


def own_mass(attention: Attention, rows: Tensor) -> Tensor:
    """The map where the mass of the keys level with edited queries lies on the query's own, if it sees that."""
    probability, among = softmax_map(attention), _level_with(rows, attention)[:, None, None]
    mass = torch.where(among, probability, 0).sum(-1, keepdim=True)
    return torch.where(among, mass * own_key(attention, rows), probability)


def _level_with(rows: Tensor, attention: Attention) -> Tensor:
    """The keys level with chosen queries, bool ``[batch or 1, keys]``."""
    return torch.nn.functional.pad(rows, (attention.visibility.offset, 0))


def _own(attention: Attention) -> Tensor:
    """Whether a key is level with a query, bool ``[queries, keys]``."""
    rule = attention.visibility
    return torch.eye(rule.num_keys, dtype=torch.bool, device=attention.query.device)[rule.offset :]


def uniform(attention: Attention, _rows: Tensor) -> Tensor:
    """The same for every key that the query sees."""
    visible = attention.visibility.whole_mask(attention.query.device).to(attention.precision)
    return visible / visible.sum(-1, keepdim=True).clamp(min=1)


def of_mean_query(attention: Attention, rows: Tensor) -> Tensor:
    """The map of the mean of the chosen queries, in every row over the keys that the row sees."""
    chosen = rows[:, None, :, None]
    total = torch.where(chosen, attention.query.to(attention.precision), 0).sum(2, keepdim=True)
    mean = total / chosen.sum(2, keepdim=True).clamp(min=1)
    return softmax_map(attention.replace(query=mean.expand_as(attention.query)))


def argmax(attention: Attention, _rows: Tensor) -> Tensor:
    """One at the first key of the largest logit."""
    _, logits, _ = reference.softmax_map(attention.query, attention.key, attention.scale, attention.visibility)
    highest, index = logits.max(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, index, 1) * (highest > -torch.inf)


TARGETS: dict[str, Callable[[Attention, Tensor], Tensor]] = {
    "value": own_key,
    "own_logit": own_logit,
    "own_mass": own_mass,
    "uniform": uniform,
    "mean_query": of_mean_query,
    "argmax": argmax,
}


def scale_keys(attention: Attention, keys: Tensor, beta: float) -> Tensor:
    """Chosen columns times beta, what they lose given to the others of the row in proportion."""
    chosen = keys[:, :, None]
    arguments = attention.query, attention.key, attention.scale, attention.visibility
    probability, logits, _ = reference.softmax_map(*arguments)
    # Normalised by themselves, for their probabilities may all be too small for the format.
    logits = logits.masked_fill(chosen, -torch.inf)
    has_others = (logits > -torch.inf).any(-1, keepdim=True)
    others = logits.masked_fill(~has_others, 0).softmax(-1)
    left = 1 - beta * torch.where(chosen, probability, 0).sum(-1, keepdim=True)
    edited = torch.where(chosen, beta * probability, left * others)
    return edit_map(attention, lambda probability: torch.where(has_others, edited, probability))


def swap_map(attention: Attention, source: Tensor) -> Tensor:
    """The maps of other batch rows."""
    return edit_map(attention, lambda probability: probability[source])


def remap_columns(attention: Attention, source: Tensor, mapping: Tensor, blend: Tensor, weights: Tensor) -> Tensor:
    """Columns of other batch rows' maps, moved by ``mapping``, blended with the own ones, and weighted."""
    mapping, blend, weights = (x.to(attention.precision) for x in (mapping, blend, weights))

    def edit(probability: Tensor) -> Tensor:
        moved = probability[source] @ mapping[:, None]
        share = blend[:, None, None]
        return (share * moved + (1 - share) * probability) * weights[:, None, None]

    return edit_map(attention, edit)
