"""The edits after the softmax in PyTorch, from outputs and log-sum-exps of attention: no map is stored.

An output is linear in the map, so that a change of the map is a change of the output or of the values.
"""

import torch
from torch import Tensor

from attn.core_kernels.edit.arguments import Attention, heads_where, values_known
from attn.core_kernels.heads import repeat_heads
from attn.core_kernels.observe.softmax_map import row_stats

FEW_KEYS = 64  # as many columns of the map as are worth storing rather than passing over all keys once more


def mix_values(attention: Attention, mix: Tensor, target: str, rows: Tensor | None) -> Tensor:
    """Interpolation between output and target; ``mix [batch or 1, heads]``, ``rows [batch or 1, queries]``."""
    every = list(range(attention.query.shape[1]))
    mapped, edited = every, every
    if not mix.requires_grad:
        edited = heads_where(mix > 0)
        mapped = heads_where(mix < 1) if rows is None else every
    attended = attention.for_heads(mapped, lambda chosen: chosen.attend()[0])
    if not edited:
        return attended
    share = mix.to(attention.precision)[:, :, None, None]
    if rows is not None:
        share = share * rows[:, None, :, None]
    other = attention.for_heads(edited, lambda chosen: TARGETS[target](chosen, rows))
    return ((1 - share) * attended + share * other).to(attention.query.dtype)


def own_value(attention: Attention, _rows: Tensor | None) -> Tensor:
    """The value of the key level with each query."""
    own = attention.value[:, :, attention.visibility.offset :]
    return repeat_heads(own, attention.query.shape[1])


def own_logit(attention: Attention, rows: Tensor | None) -> Tensor:
    """The own value and the output over the keys that are level with no edited query, weighted by their logits."""
    rule, precision = attention.visibility, attention.precision
    others, others_lse = attention.within(~_level_with(rows, attention)).attend()
    own_key = repeat_heads(attention.key[:, :, rule.offset :], attention.query.shape[1])
    logit = attention.scale * (attention.query.to(precision) * own_key.to(precision)).sum(-1)
    if rule.key_mask is not None:
        logit = logit.masked_fill(~rule.key_mask[:, None, rule.offset :], -torch.inf)
    return _weighted(own_value(attention, rows), logit, others, others_lse)


def own_mass(attention: Attention, rows: Tensor | None) -> Tensor:
    """The own value and the output over the keys that are level with no edited query, weighted by their masses."""
    level = _level_with(rows, attention)
    others, others_lse = attention.within(~level).attend()
    return _weighted(own_value(attention, rows), attention.within(level).attend()[1], others, others_lse)


def _weighted(own: Tensor, own_lse: Tensor, others: Tensor, others_lse: Tensor) -> Tensor:
    """Two outputs weighted by the exponentials of their log-sum-exps, in query's dtype; 0 where both are -inf."""
    has_own, has_others = own_lse > -torch.inf, others_lse > -torch.inf
    both = has_own & has_others
    share = torch.sigmoid(torch.where(both, own_lse, 0) - torch.where(both, others_lse, 0))
    share = torch.where(both, share, has_own.to(share.dtype))[..., None]
    return (share * own + (1 - share) * others).to(others.dtype)


def _level_with(rows: Tensor | None, attention: Attention) -> Tensor:
    """The keys level with chosen queries, bool ``[batch, keys]``; rows are bool ``[batch or 1, queries]``."""
    batch, _, queries, _ = attention.query.shape
    rows = torch.ones(1, queries, dtype=torch.bool, device=attention.query.device) if rows is None else rows
    return torch.nn.functional.pad(rows.expand(batch, -1), (attention.visibility.offset, 0))


def mean_value(attention: Attention, _rows: Tensor | None) -> Tensor:
    """The mean value of the keys that each query sees."""
    rule, value = attention.visibility, attention.value
    seen = torch.ones(1, rule.num_keys, dtype=torch.bool, device=value.device)
    if rule.key_mask is not None:
        seen = rule.key_mask
    if rule.causal or rule.window is not None:
        # Differences of sums from the first key on, in float64: they grow with the keys, what is left does not.
        position = torch.arange(rule.num_queries, device=value.device) + rule.offset
        window = rule.num_keys + rule.num_queries if rule.window is None else rule.window
        first = (position - window + 1).clamp(0, rule.num_keys)
        last = (position + 1 if rule.causal else position + window).clamp(0, rule.num_keys)
        until, count = (
            torch.nn.functional.pad(x.double().cumsum(-2), (0, 0, 1, 0)) for x in (value, seen[:, None, :, None])
        )
        total, count = (x[:, :, last] - x[:, :, first] for x in (until, count))
    else:
        total = value.to(attention.precision).sum(2, keepdim=True)
        count = seen[:, None, :, None].sum(2, keepdim=True)
    mean = (total / count.clamp(min=1)).to(attention.precision)
    return repeat_heads(mean, attention.query.shape[1]).expand(attention.out_shape).to(attention.query.dtype)


def of_mean_query(attention: Attention, rows: Tensor | None) -> Tensor:
    """The output of the mean of the chosen queries; one row, unless order or a window make the rows differ."""
    rule = attention.visibility
    query = attention.query.to(attention.precision)
    if rows is None:
        mean = query.mean(2, keepdim=True)
    else:
        chosen = rows[:, None, :, None]
        mean = torch.where(chosen, query, 0).sum(2, keepdim=True) / chosen.sum(2, keepdim=True).clamp(min=1)
    mean = mean.to(attention.query.dtype)
    if rule.causal or rule.window is not None:
        mean = mean.expand_as(attention.query)
    return attention.replace(query=mean).attend()[0].expand(attention.out_shape)


def at_argmax(attention: Attention, _rows: Tensor | None) -> Tensor:
    """The value of the first key of largest probability."""
    rule, value = attention.visibility, attention.value
    index = row_stats(
        attention.query.detach(),
        attention.key.detach(),
        causal=rule.causal,
        window=rule.window,
        key_mask=rule.key_mask,
        scale=attention.scale,
    ).argmax[..., None]
    by_group = index.clamp(min=0).unflatten(1, (value.shape[1], -1)).flatten(2, 3)
    best = value.gather(2, by_group.expand(-1, -1, -1, value.shape[3]))
    return best.view(attention.out_shape).masked_fill(index < 0, 0)


TARGETS = {
    "value": own_value,
    "own_logit": own_logit,
    "own_mass": own_mass,
    "uniform": mean_value,
    "mean_query": of_mean_query,
    "argmax": at_argmax,
}


def scale_keys(attention: Attention, keys: Tensor, beta: float) -> Tensor:
    """Outputs over the chosen keys and over the others, weighted anew; heads without a chosen key stay as they are."""
    keys = keys.expand(*attention.query.shape[:2], -1)
    edited = heads_where(keys.any(-1))
    if beta == 1 or not edited:
        return attention.attend()[0]
    if len(edited) == attention.query.shape[1]:
        return _scale_keys(attention, keys, beta)
    untouched = [head for head in range(keys.shape[1]) if head not in edited]
    plain = attention.for_heads(untouched, lambda chosen: chosen.attend()[0])
    return plain + attention.for_heads(edited, lambda chosen: _scale_keys(chosen, keys[:, edited], beta))


def _scale_keys(attention: Attention, keys: Tensor, beta: float) -> Tensor:
    r"""With mass ``s`` on the chosen keys: ``beta s O_chosen + (1 - beta s) O_others``.

    Equal to ``c O - (c - beta) s O_chosen``, ``c = 1 + (1 - beta) s / (1 - s)``, which loses its digits as s nears 1.
    """
    folded = attention.heads_as_batch()
    keys = keys.flatten(0, 1)
    of_others, others_lse = folded.within(~keys).attend()
    of_chosen, chosen_lse = _attend_within(folded, keys)
    has_others, has_chosen = others_lse > -torch.inf, chosen_lse > -torch.inf
    both = has_others & has_chosen
    mass = torch.sigmoid(torch.where(both, chosen_lse, 0) - torch.where(both, others_lse, 0))
    # A row that sees chosen keys alone has nowhere to put what they would lose.
    share = torch.where(both, beta * mass, has_chosen)[..., None]
    out = share * of_chosen + (1 - share) * of_others
    return out.view(attention.out_shape).to(attention.query.dtype)


def _attend_within(attention: Attention, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over some keys, bool ``[batch, keys]``; over their columns alone if they are few."""
    count = int(keys.sum(-1).max()) if values_known() and len(keys) else None
    if count is None or count > FEW_KEYS:
        return attention.within(keys).attend()
    rule = attention.visibility
    chosen, column = keys.to(torch.uint8).topk(count, sorted=False)  # [batch, count]
    key, value = (
        x[:, 0].gather(1, column[..., None].expand(-1, -1, x.shape[3])).to(attention.precision)
        for x in (attention.key, attention.value)
    )
    position = torch.arange(rule.num_queries, device=keys.device)[:, None] + rule.offset
    ahead = column[:, None] - position
    visible = (chosen > 0)[:, None]
    if rule.causal:
        visible = visible & (ahead <= 0)
    if rule.window is not None:
        visible = visible & (ahead.abs() < rule.window)
    logits = attention.scale * attention.query[:, 0].to(attention.precision) @ key.mT
    logits = logits.masked_fill(~visible, -torch.inf)
    none = ~visible.any(-1, keepdim=True)
    lse = logits.masked_fill(none, 0).logsumexp(-1, keepdim=True)
    out = (logits - lse).exp() @ value
    return out[:, None], lse.masked_fill(none, -torch.inf)[:, None, :, 0]


def swap_map(attention: Attention, source: Tensor) -> Tensor:
    """Queries and keys of other batch rows with the own values."""
    return attention.take_maps(source).attend()[0]


def remap_columns(
    attention: Attention, source: Tensor, mapping: Tensor | None, blend: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Columns of the map moved, blended and weighted as rows of the values: ``(A M) v = A (M v)``."""
    dtype, precision = attention.query.dtype, attention.precision
    mapping, blend, weights = (None if x is None else x.to(precision) for x in (mapping, blend, weights))
    value = attention.value.to(precision)
    if weights is not None:
        value = value * weights[:, None, :, None]
    moved = value if blend is None else value * blend[:, None, :, None]
    if mapping is not None:
        moved = mapping[:, None] @ moved
    out = swap_map(attention.replace(value=moved.to(dtype)), source)
    if blend is not None:
        kept = value * (1 - blend)[:, None, :, None]
        out = out + attention.replace(value=kept.to(dtype)).attend()[0]
    return out
