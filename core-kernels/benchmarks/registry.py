"""What is measured: per operator its inputs, who computes it, and the baseline that a user would pick instead."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attn.core_kernels import (
    BlockLayout,
    attention_with_lse,
    block_sparse_attention,
    boost_keys,
    decay_outside_window,
    key_mass,
    key_moments,
    linear_attention,
    logit_by_distance,
    mass_by_distance,
    mean_map,
    mimicry_cross_entropy,
    mix_values,
    row_stats,
    scale_keys,
    submap,
    suffix_key_mass,
    swap_map,
    tile_stats,
)

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute.

    Args:
        call: from the inputs to the tensor whose error and gradient are measured.
        exact: the same mathematics for float64 inputs; its result is the truth.
        devices: types of the devices that it is measured on; empty means all.
    """

    call: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One operator on several shapes.

    Args:
        shapes: keyword arguments of ``inputs``, one dictionary per shape.
        inputs: makes the arguments, those that need a gradient marked.
        candidates: by name; the baseline is one of them.
        baseline: the name that ratios refer to.
        largest: per candidate name, the most tokens that it is asked for, where more would not fit.
    """

    shapes: Sequence[dict[str, int]]
    inputs: Callable[..., Inputs]
    candidates: dict[str, Candidate]
    baseline: str
    largest: dict[str, int]


def draw(*shapes: tuple[int, ...], positive: int = 0) -> Inputs:
    """Seeded normal tensors that need gradients, the first ``positive`` of them exponentials."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return tuple((x.exp() if i < positive else x).requires_grad_() for i, x in enumerate(tensors))


def linear_inputs(batch: int, heads: int, tokens: int, features: int, head_dim: int) -> Inputs:
    """Features of queries and keys, values, and the queries and keys that softmax attention would see."""
    wide, narrow = (batch, heads, tokens, features), (batch, heads, tokens, head_dim)
    return draw(wide, wide, narrow, narrow, narrow, positive=2)


def linear(impl: str, *, decay: bool = False) -> Callable[..., Tensor]:
    """Causal linear attention by one implementation, with rates from 1/2 to 1/256 if ``decay``."""

    def call(query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
        heads = query.shape[1]
        rates = 2.0 ** -torch.linspace(1, 8, heads, device=query.device) if decay else None
        return linear_attention(query, key, value, decay=rates, normalize=not decay, impl=impl)  # type: ignore[arg-type,return-value]

    return call


def softmax(_query: Tensor, _key: Tensor, value: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Causal softmax attention by the maintained kernel."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def mimicry_inputs(batch: int, heads: int, tokens: int, features: int, head_dim: int) -> Inputs:
    """Queries and keys of the teacher, features of the student."""
    wide, narrow = (batch, heads, tokens, features), (batch, heads, tokens, head_dim)
    query_features, key_features, query, key = draw(wide, wide, narrow, narrow, positive=2)
    return query.detach(), key.detach(), query_features, key_features


def mimicry(impl: str) -> Callable[..., Tensor]:
    """The cross-entropy rows by one implementation."""

    def call(*inputs: Tensor) -> Tensor:
        return mimicry_cross_entropy(*inputs, impl=impl).cross_entropy  # type: ignore[arg-type]

    return call


def map_inputs(batch: int, heads: int, tokens: int, head_dim: int, causal: int) -> Inputs:
    """Queries, keys and values without gradient, and whether the map is causal."""
    rows = (x.detach() for x in draw(*[(batch, heads, tokens, head_dim)] * 3))
    return *rows, torch.tensor(bool(causal))


def trained_map_inputs(**shape: int) -> Inputs:
    """The same with queries and keys that need gradients."""
    query, key, value, causal = map_inputs(**shape)
    return query.requires_grad_(), key.requires_grad_(), value, causal


def eager_scores(query: Tensor, key: Tensor, causal: Tensor) -> Tensor:
    """The scores as an eager attention module computes them."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def eager_map(query: Tensor, key: Tensor, causal: Tensor) -> Tensor:
    """The softmax map as an eager attention module computes it."""
    return eager_scores(query, key, causal).softmax(-1)


def sums_of_tiles(probability: Tensor, _value: Tensor) -> Tensor:
    """Sums of tiles of 64 rows and columns, the maxima and small entries read as well."""
    tiles = probability.unflatten(3, (-1, 64)).unflatten(2, (-1, 64))
    tiles.amax((3, 5))
    (tiles < 1e-3).sum((3, 5))
    return tiles.sum((3, 5))


def entropies(probability: Tensor, _value: Tensor) -> Tensor:
    """Entropy of the rows, the largest probability read as well."""
    probability.max(-1)
    return torch.special.entr(probability).sum(-1)


def squares(probability: Tensor, _value: Tensor) -> Tensor:
    """Column sums of the squares, the column sums read as well."""
    probability.sum(2)
    return probability.square().sum(2)


def suffixes(probability: Tensor, _value: Tensor) -> Tensor:
    """Column sums from every 64th row on."""
    return probability.unflatten(2, (-1, 64)).sum(3).flip(2).cumsum(2).flip(2)


def masses_near_and_far(entries: Tensor, _value: Tensor) -> Tensor:
    """Sums per row up to a distance of 99 and beyond."""
    return torch.stack([entries.masked_fill(~band, 0).sum(-1) for band in near_and_far(entries)], -1)


def logits_near_and_far(scores: Tensor, _value: Tensor) -> Tensor:
    """Means up to a distance of 99 and beyond."""
    return torch.stack([scores.masked_fill(~band, 0).sum((2, 3)) / band.sum() for band in near_and_far(scores)], -1)


def near_and_far(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Whether query and key are less than 100 apart, and whether they are not."""
    token = torch.arange(entries.shape[-1], device=entries.device)
    near = (token[:, None] - token).abs() < 100
    return near, ~near


def read_map(
    ours: Callable[..., Tensor],
    eager: Callable[[Tensor, Tensor], Tensor],
    *,
    source: Callable[..., Tensor] | None = None,
    causal: bool = False,
    trained: bool = False,
) -> Benchmark:
    """An operator of the softmax map against the eager map, or its scores, and what is then read off it."""

    def call(query: Tensor, key: Tensor, value: Tensor, is_causal: Tensor) -> Tensor:
        return ours(query, key, value, causal=bool(is_causal))

    def baseline(query: Tensor, key: Tensor, value: Tensor, is_causal: Tensor) -> Tensor:
        return eager((source or eager_map)(query, key, is_causal), value)

    shapes = [(1024, 0), (4096, 0), (4096, 1)] if causal else [(1024, 0), (4096, 0)]
    return Benchmark(
        shapes=[{"batch": 1, "heads": 8, "tokens": n, "head_dim": 64, "causal": c} for n, c in shapes],
        inputs=trained_map_inputs if trained else map_inputs,
        candidates={"eager": Candidate(call=baseline, exact=call), "torch": Candidate(call=call, exact=call)},
        baseline="eager",
        largest={},
    )


def edited(call: Callable[..., Tensor]) -> Benchmark:
    """An edit against plain attention by the maintained kernel, and against its own dense form."""

    def plain(query: Tensor, key: Tensor, value: Tensor, is_causal: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=bool(is_causal))

    def by(impl: str) -> Callable[..., Tensor]:
        return lambda query, key, value, is_causal: call(query, key, value, causal=bool(is_causal), impl=impl)

    return Benchmark(
        shapes=[
            {"batch": 1, "heads": 8, "tokens": n, "head_dim": 64, "causal": c}
            for n, c in [(1024, 0), (4096, 0), (4096, 1)]
        ],
        inputs=map_inputs,
        candidates={
            "sdpa": Candidate(call=plain, exact=plain),
            "torch": Candidate(call=by("auto"), exact=by("torch")),
            "reference": Candidate(call=by("reference"), exact=by("torch")),
        },
        baseline="sdpa",
        largest={"reference": 1024},
    )


def every_nth_key(query: Tensor, step: int) -> Tensor:
    """A set of keys, the same for all heads."""
    return (torch.arange(query.shape[2], device=query.device) % step == 1)[None, None]


def per_head(query: Tensor, number: float) -> Tensor:
    """A number for every head."""
    return torch.full(query.shape[1:2], number, device=query.device)


def sparse_inputs(batch: int, heads: int, tokens: int, head_dim: int, percent: int) -> Inputs:
    """Queries, keys and values without gradient, and the share of blocks that is kept."""
    return *(x.detach() for x in draw(*[(batch, heads, tokens, head_dim)] * 3)), torch.tensor(percent)


@functools.cache
def best_blocks(tokens: int, percent: int, device: torch.device) -> BlockLayout:
    """That share of the key blocks of every query block, the best by scores that are drawn."""
    blocks = -(-tokens // 64)
    scores = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0))
    return BlockLayout.from_scores(scores, tokens, tokens, top_k=max(blocks * percent // 100, 1)).to(device)


def block_sparse(impl: str) -> Callable[..., Tensor]:
    """Attention over the kept blocks by one implementation."""

    def call(query: Tensor, key: Tensor, value: Tensor, percent: Tensor) -> Tensor:
        layout = best_blocks(query.shape[2], int(percent), query.device)
        return block_sparse_attention(query, key, value, layout, impl=impl)  # type: ignore[arg-type,return-value]

    return call


@functools.cache
def best_block_mask(tokens: int, percent: int, device: torch.device) -> BlockMask:
    """The same for FlexAttention."""
    return best_blocks(tokens, percent, device).to_block_mask()


def flex(query: Tensor, key: Tensor, value: Tensor, percent: Tensor) -> Tensor:
    """FlexAttention as its user would call it, the mask made before."""
    block_mask = best_block_mask(query.shape[2], int(percent), query.device)
    return compiled_flex_attention()(query, key, value, block_mask=block_mask)  # type: ignore[no-any-return]


@functools.cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """Compiled once."""
    return torch.compile(flex_attention)  # type: ignore[return-value]


def dense(query: Tensor, key: Tensor, value: Tensor, _percent: Tensor) -> Tensor:
    """Attention over all."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


ROWS, COLUMNS = torch.arange(900, 960), torch.arange(100, 400)


LENGTHS = (512, 1024, 2048, 4096, 8192)

BENCHMARKS = {
    # Hedgehog's features are twice the head's width. The feature map itself is not part of the operator.
    "linear_attention": Benchmark(
        shapes=[{"batch": 1, "heads": 8, "tokens": n, "features": 128, "head_dim": 64} for n in LENGTHS],
        inputs=linear_inputs,
        candidates={
            "sdpa": Candidate(call=softmax, exact=softmax),
            "torch": Candidate(call=linear("auto"), exact=linear("torch")),
            "torch, decay": Candidate(call=linear("auto", decay=True), exact=linear("torch", decay=True)),
            "reference": Candidate(call=linear("reference"), exact=linear("torch")),
        },
        baseline="sdpa",
        largest={"reference": 2048},
    ),
    "mimicry_cross_entropy": Benchmark(
        shapes=[{"batch": 1, "heads": 8, "tokens": n, "features": 128, "head_dim": 64} for n in LENGTHS[:4]],
        inputs=mimicry_inputs,
        candidates={
            "reference": Candidate(call=mimicry("reference"), exact=mimicry("torch")),
            "torch": Candidate(call=mimicry("auto"), exact=mimicry("torch")),
        },
        baseline="reference",
        largest={"reference": 2048},
    ),
    "block_sparse_attention": Benchmark(
        shapes=[{"batch": 1, "heads": 8, "tokens": 4096, "head_dim": 64, "percent": p} for p in (5, 10, 25, 50)],
        inputs=sparse_inputs,
        candidates={
            "sdpa": Candidate(call=dense, exact=dense),
            "torch": Candidate(call=block_sparse("torch"), exact=block_sparse("torch")),
            "triton": Candidate(call=block_sparse("triton"), exact=block_sparse("torch"), devices=("cuda",)),
            "flex": Candidate(call=flex, exact=block_sparse("torch"), devices=("cuda",)),
        },
        baseline="sdpa",
        largest={},
    ),
    "attention_with_lse": read_map(
        lambda q, k, v, causal: attention_with_lse(q, k, v, causal=causal)[0], lambda p, v: p @ v, causal=True
    ),
    "key_mass": read_map(lambda q, k, _, causal: key_mass(q, k, causal=causal), lambda p, _: p.sum(2), causal=True),
    "key_moments": read_map(lambda q, k, _, causal: key_moments(q, k, causal=causal).square, squares),
    "suffix_key_mass": read_map(lambda q, k, _, causal: suffix_key_mass(q, k, block_size=64, causal=causal), suffixes),
    "row_stats": read_map(lambda q, k, _, causal: row_stats(q, k, causal=causal).entropy, entropies),
    "submap": read_map(
        lambda q, k, _, causal: submap(q, k, ROWS, COLUMNS, causal=causal), lambda p, _: p[:, :, ROWS][..., COLUMNS]
    ),
    "mean_map": read_map(lambda q, k, _, causal: mean_map(q, k, causal=causal), lambda p, _: p.mean(1), trained=True),
    "tile_stats": read_map(
        lambda q, k, _, causal: tile_stats(q, k, block_size=64, eps=1e-3, causal=causal).sum, sums_of_tiles
    ),
    "mass_by_distance": read_map(
        lambda q, k, _, causal: mass_by_distance(q, k, (0, 100), causal=causal), masses_near_and_far
    ),
    "logit_by_distance": read_map(
        lambda q, k, _, causal: logit_by_distance(q, k, (0, 100), causal=causal),
        logits_near_and_far,
        source=eager_scores,
    ),
    "mix_values": edited(lambda q, k, v, **options: mix_values(q, k, v, per_head(q, 0.5), **options)),
    "scale_keys": edited(lambda q, k, v, **options: scale_keys(q, k, v, every_nth_key(q, 500), 0.4, **options)),
    "swap_map": edited(lambda q, k, v, **options: swap_map(q, k, v, q.new_zeros(q.shape[0]).long(), **options)),
    "decay_outside_window": edited(lambda q, k, v, **options: decay_outside_window(q, k, v, 512, 0.9, **options)),
    "boost_keys": edited(lambda q, k, v, **options: boost_keys(q, k, v, every_nth_key(q, 4), 0.5, **options)),
}
