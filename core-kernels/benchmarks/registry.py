"""What is measured: per operator its inputs, who computes it, and the baseline that a user would pick instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attn.core_kernels import linear_attention, mimicry_cross_entropy

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute.

    Args:
        call: from the inputs to the tensor whose error and gradient are measured.
        exact: the same mathematics for float64 inputs; its result is the truth.
    """

    call: Callable[..., Tensor]
    exact: Callable[..., Tensor]


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
}
