"""Query-key and output-value circuits of attention heads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Circuits", "layer_circuits"]


class Circuits(NamedTuple):
    """What heads do with tokens, whatever the bases of their queries, keys and values.

    Attributes:
        query_key: ``[heads, width, width]``, W_K^T W_Q times the scale of the scores; rows are coordinates of the key's
            token, columns of the query's.
        output_value: ``[heads, n_out, width]``, W_O W_V; columns are coordinates of the attended token.
    """

    query_key: Tensor
    output_value: Tensor


@torch.no_grad()
def layer_circuits(attention: Any, heads: Sequence[int] | None = None) -> Circuits:
    """The circuits of an attention module of transformers: with q_proj, k_proj, v_proj and o_proj, or GPT-2's.

    Biases, rotary embeddings and norms of queries and keys are left out: with rotary embeddings, the query-key circuit
    is that of a token and itself.

    Args:
        attention: the module, ``model.layers[i].self_attn`` of a Llama or ``model.h[i].attn`` of a GPT-2.
        heads: which heads; None is all. Memory is ``2 * heads * width**2`` numbers.

    Raises:
        NotImplementedError: if the module has other projections.
        ValueError: if there is no such head.
    """
    if hasattr(attention, "c_attn") and hasattr(attention, "c_proj"):
        projections = attention.c_attn.weight.mT.chunk(3)
        output, scale = attention.c_proj.weight.mT, attention.scaling
        head_dim = attention.head_dim
    elif all(hasattr(attention, f"{name}_proj") for name in "qkvo"):
        projections = [getattr(attention, f"{name}_proj").weight for name in "qkv"]
        output, scale, head_dim = attention.o_proj.weight, attention.scaling, attention.head_dim
    else:
        raise NotImplementedError(
            "attention must have q_proj, k_proj, v_proj and o_proj, or c_attn and c_proj as GPT-2, "
            f"got {type(attention).__name__}"
        )
    query, key, value = (weight.unflatten(0, (-1, head_dim)) for weight in projections)
    chosen = range(len(query)) if heads is None else heads
    if not all(0 <= head < len(query) for head in chosen):
        raise ValueError(f"heads must lie in 0 .. {len(query) - 1}, got {list(chosen)}")
    shared = len(query) // len(key)  # grouped-query attention: queries to a key head
    index = torch.tensor(list(chosen), device=query.device)
    query, key, value = query[index], key[index // shared], value[index // shared]
    output = output.unflatten(1, (-1, head_dim)).transpose(0, 1)[index]
    return Circuits(key.mT @ query * scale, output @ value)
