r"""The public edits after the softmax: the map ``A = softmax(scale * query @ key.T)`` changed, then applied to values.

All see the map over the keys that `Visibility` lets a query see; a row that sees no key is zero in the map and in the
output. Results are in query's dtype, computed in float32 (float64 for float64), under autocast too. All are
differentiable. The arguments that all share are described in `mix_values`. Bad arguments raise TypeError or ValueError
that names the argument, the rule and what came; NotImplementedError if the implementation named does not serve the
call, as `capability_table` says.

Outside ``torch.compile`` the values of ``mix``, ``keys`` and the like are looked at, to check them and to leave out
heads that need no work; on a GPU that waits for them.
"""
# ruff: noqa: D417 (arguments that all operators share are described once)

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from attn.core_kernels.checks import check_indices
from attn.core_kernels.edit.arguments import (
    check_attention,
    check_between,
    check_entries,
    check_keys,
    check_tensor,
    values_known,
)
from attn.core_kernels.edit.probabilities import composition, reference
from attn.core_kernels.implementations import Impl, choose_implementation

Target = Literal["value", "own_logit", "own_mass", "uniform", "mean_query", "argmax"]


def mix_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mix: Tensor,
    *,
    target: Target = "value",
    rows: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Interpolation of heads towards a trivial map: ``(1 - u) A v + u T v``.

    The perturbation of SoftPAG (equation 7 of Ahn et al., "Where and How to Perturb", 2025), at ``u = 1`` of PAG at the
    level of heads (equation 6). ``T`` is never formed, and heads whose ``u`` is 1 in every sample skip the map.

    Args:
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, key_heads, keys, head_dim]`` of at least one key, ``heads`` a multiple of ``key_heads``.
        value: ``[batch, key_heads, keys, value_dim]``.
        mix: u, ``[heads]`` or ``[batch, heads]``, in [0, 1]; differentiable.
        target: ``"value"``, the identity: each query takes the value of the key level with it, 0 if that key is masked;
            ``"own_logit"``, of the keys level with edited queries each sees its own alone, before the softmax, so that
            it also attends to the keys of the others, as in the perturbed attention guidance of joint text and image
            attention; ``"own_mass"``, its own takes the probability of all of them, and the others' stay as they are;
            ``"uniform"``, the mean of the values that the query sees; ``"mean_query"``, smoothed energy guidance: the
            map of the mean of the queries; ``"argmax"``, the value of the row's first key of largest probability (one
            pass more over the map). The first three need at most as many queries as keys, the last level with the last
            key, and are the same where all queries are edited and no key is left over.
        rows: int64 indices of the queries that are edited, ``[rows]`` or ``[batch, rows]``, e.g. an image's tokens; the
            others keep their map. The mean query is the mean of these, so that padded queries must be left out of them.
            None for all.
        causal: hide the keys after each query; the last query is level with the last key, so that query ``i`` sees key
            ``j`` if ``j <= i + keys - queries``.
        window: hide the keys at this distance and further, so that 1 leaves a query the key level with it; None for no
            limit.
        key_mask: bool ``[batch, keys]``, True where a key may be seen; what is stored at the others never matters.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        impl: ``"torch"``, compositions of `attention_with_lse`, whose memory grows with queries plus keys;
            ``"reference"``, dense; ``"auto"`` for the best that serves the call and is not the reference.

    Returns:
        ``[batch, heads, queries, value_dim]``.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    check_tensor("mix", mix, query)
    batch, heads, queries = query.shape[:3]
    if list(mix.shape) not in ([heads], [batch, heads]):
        raise ValueError(f"mix must have shape [{heads}] or [{batch}, {heads}], got {list(mix.shape)}")
    check_entries("mix", mix, 0, 1)
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(map(repr, get_args(Target)))}, got {target!r}")
    if target in ("value", "own_logit", "own_mass") and queries > key.shape[2]:
        raise ValueError(
            f"query must have at most as many tokens as key, {key.shape[2]}, for target {target!r}, got {queries}"
        )
    chosen_rows = check_indices("rows", rows, query)
    if chosen_rows is not None:
        none = torch.zeros(chosen_rows.shape[0], queries, dtype=torch.bool, device=query.device)
        chosen_rows = none.scatter(1, chosen_rows, True)
    mix = mix if mix.ndim == 2 else mix[None]
    chosen = choose_implementation("mix_values", impl, query, key, value)
    with torch.autocast(query.device.type, enabled=False):
        if chosen == "reference":
            every = torch.ones(1, queries, dtype=torch.bool, device=query.device)
            return reference.mix_values(attention, mix, target, every if chosen_rows is None else chosen_rows)
        return composition.mix_values(attention, mix, target, chosen_rows)


def scale_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    beta: float,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Attention whose map gives chosen keys ``beta`` of their probability, and what they lose to the row's others.

    .. math:: A'_{ij} = \beta A_{ij} \; (j \in S), \quad
              A'_{ij} = A_{ij} \Big( 1 + \frac{(1 - \beta) s_i}{1 - s_i} \Big) \; (j \notin S), \quad
              s_i = \sum_{j \in S} A_{ij}

    The calibration of attention sinks of ACT (section 3 of Yu et al., "Unveiling and Harnessing Hidden Attention
    Sinks", 2024), whose beta is 0.4. Rows still sum to one; a row that sees chosen keys alone keeps its map, as the
    first row of a causal map does. With beta 1, or without a chosen key, the result is that of plain attention, bit for
    bit, and so is a head of which no key is chosen.

    Up to 64 chosen keys per head cost as many columns of the map; more cost a second pass over the map, which
    ``torch.compile``, where nobody counts them, always takes.

    Args:
        keys: S, bool ``[batch or 1, heads or 1, keys]``.
        beta: factor in [0, 1].
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    keys = check_keys(keys, attention)
    beta = check_between("beta", beta, 0, 1)
    chosen = choose_implementation("scale_keys", impl, query, key, value)
    form = reference if chosen == "reference" else composition
    with torch.autocast(query.device.type, enabled=False):
        return form.scale_keys(attention, keys, beta)


def swap_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention in which a batch row has the map of another: ``out[b] = A[source[b]] @ value[b]``.

    The replacement of self-attention maps of Prompt-to-Prompt (Hertz et al., 2022), at the cost of plain attention: the
    queries and keys of the source meet the values of the target. The source's key mask says what its map sees; values
    that the target's own mask hides are 0.

    Args:
        source: int64 ``[batch]``, the batch row whose map each one takes; its own number leaves it as it is.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    _check_source(source, query)
    chosen = choose_implementation("swap_map", impl, query, key, value)
    form = reference if chosen == "reference" else composition
    with torch.autocast(query.device.type, enabled=False):
        return form.swap_map(attention, source)


def remap_columns(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Tensor,
    mapping: Tensor | None = None,
    *,
    blend: Tensor | None = None,
    weights: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Attention whose columns come from the map of another batch row: ``A' = ((A_source M) w + A (1 - w)) e``.

    The control of cross-attention of Prompt-to-Prompt (Hertz et al., 2022, section 3). Word swap: ``source`` alone, or
    with an ``M`` that moves the columns of words of several tokens. Refinement: ``M`` moves the columns of the tokens
    that both prompts have, ``w`` is 1 at them and 0 at the inserted ones. Re-weighting: ``e``. As there, rows of the
    edited map need not sum to one.

    No map is stored: columns move as rows of the values do, ``(A M) v = A (M v)``, and a blend is the sum of two
    attentions. ``M`` has keys times keys entries, of which prompts have few.

    Args:
        source: int64 ``[batch]``, the batch row whose map each one takes. What follows holds for every row, also for
            one that is its own source: give neutral entries to the rows that are to stay as they are.
        mapping: M, ``[batch or 1, keys, keys]``, from the source's key (row) to the target's (column); None for the
            identity.
        blend: w, ``[batch or 1, keys]``, in [0, 1]; None for 1, which saves one of two attentions.
        weights: e, ``[batch or 1, keys]``; None for 1.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)
    _check_source(source, query)
    batch, keys = query.shape[0], key.shape[2]
    neutral = {
        "mapping": torch.eye(keys, device=query.device)[None],
        "blend": torch.ones(1, keys, device=query.device),
        "weights": torch.ones(1, keys, device=query.device),
    }
    given = {"mapping": mapping, "blend": blend, "weights": weights}
    for name, tensor in given.items():
        if tensor is None:
            continue
        check_tensor(name, tensor, query)
        sizes = [keys] * (neutral[name].ndim - 1)
        if list(tensor.shape) not in ([1, *sizes], [batch, *sizes]):
            rule = ", ".join(map(str, sizes))
            raise ValueError(f"{name} must have shape [{batch} or 1, {rule}], got {list(tensor.shape)}")
        check_entries(name, tensor, *((0, 1) if name == "blend" else ()))
    chosen = choose_implementation("remap_columns", impl, query, key, value)
    with torch.autocast(query.device.type, enabled=False):
        if chosen == "reference":
            whole = (neutral[name] if tensor is None else tensor for name, tensor in given.items())
            return reference.remap_columns(attention, source, *whole)
        return composition.remap_columns(attention, source, mapping, blend, weights)


def edit_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    fn: Callable[[Tensor], Tensor],
    *,
    causal: bool = False,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention whose map goes through any function: ``fn(A) @ value``, for tests and for edits that have no operator.

    Stores the map, queries times keys for every head, and has no other implementation.

    Args:
        fn: takes the map ``[batch, heads, queries, keys]`` in float32 (float64 for float64), 0 where hidden, and
            returns a tensor of that shape.
    """
    attention = check_attention(query, key, value, causal=causal, window=window, key_mask=key_mask, scale=scale)

    def edit(probability: Tensor) -> Tensor:
        edited = fn(probability)
        if not isinstance(edited, Tensor):
            raise TypeError(f"fn must return a tensor, got {type(edited).__name__}")
        if edited.shape != probability.shape:
            raise ValueError(f"fn must keep the map's shape {list(probability.shape)}, got {list(edited.shape)}")
        return edited.to(probability.dtype)

    with torch.autocast(query.device.type, enabled=False):
        return reference.edit_map(attention, edit)


def _check_source(source: Tensor, query: Tensor) -> None:
    check_tensor("source", source, query, dtype="int64")
    batch = query.shape[0]
    if list(source.shape) != [batch]:
        raise ValueError(f"source must have shape [batch] = [{batch}], got {list(source.shape)}")
    if values_known() and batch and not bool(((source >= 0) & (source < batch)).all()):
        raise ValueError(f"source must lie in [0, {batch}), got {source.tolist()}")
