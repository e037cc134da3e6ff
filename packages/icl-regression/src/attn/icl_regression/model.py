"""One layer of multi-head attention from the query to its context, and the baseline without softmax (section 2)."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from attn.icl_regression.circuits import Circuits

__all__ = ["Initialization", "LinearICL", "MultiHeadICL", "SideBySide"]

Initialization = Literal["uniform", "small_id", "small_id_qk", "oppo_small_id"]


class MultiHeadICL(nn.Module):
    r"""Softmax attention from the query token to the tokens of the context, never to itself; no bias, no other layer.

    .. math:: \hat y = \sum_h W_O^h W_V^h \sum_l a^h_l z_l, \quad
        a^h = \mathrm{softmax}_l \big(z_l^\top W_K^{h\top} W_Q^h z_q / \sqrt{d_{token}}\big)

    Every head has the full width of a token. Several models may be computed side by side on the same prompts; they
    share nothing but these.

    Args:
        d_token: width of a token, d + n_out.
        heads: number of heads of each model; ``(2,)`` is one model with two heads.
        n_out: number of labels.
        initialization: ``"uniform"`` as `torch.nn.Linear` does it (the paper's); ``"small_id"`` sets queries, keys and
            values to 1e-6 times the identity, ``"small_id_qk"`` queries and keys to 1e-4 times it, ``"oppo_small_id"``
            is ``"small_id"`` with queries and values negated in the second half of a model's heads.

    Raises:
        ValueError: if a size is not positive, or the initialization unknown.
    """

    def __init__(
        self, d_token: int, heads: Sequence[int] = (2,), n_out: int = 1, initialization: Initialization = "uniform"
    ) -> None:
        super().__init__()
        if not 1 <= n_out < d_token:
            raise ValueError(f"n_out must lie in 1 .. {d_token - 1}, which d_token {d_token} leaves it, got {n_out}")
        if not heads or min(heads) < 1:
            raise ValueError(f"heads must hold a positive number for each model, got {tuple(heads)}")
        self.heads = tuple(heads)
        total = sum(heads)
        self.query, self.key, self.value = (nn.Parameter(torch.empty(total, d_token, d_token)) for _ in range(3))
        self.output = nn.Parameter(torch.empty(total, n_out, d_token))
        owners = torch.repeat_interleave(torch.arange(len(heads)), torch.tensor(self.heads))
        self.register_buffer("_owners", nn.functional.one_hot(owners, len(heads)).float(), persistent=False)
        self._initialize(initialization)

    def circuits(self) -> Circuits:
        """The circuits of all heads, those of one model after those of another; differentiable."""
        scale = self.query.shape[-1] ** -0.5
        return Circuits(torch.bmm(self.key.mT, self.query) * scale, torch.bmm(self.output, self.value))

    def circuits_of(self, model: int) -> Circuits:
        """The circuits of one model, without gradient."""
        with torch.no_grad():
            parts = [circuit.split(self.heads)[model] for circuit in self.circuits()]
        return Circuits(*parts)

    def weights(self, scores: Tensor) -> Tensor:
        """Attention weights of scores ``[batch, heads, L]``."""
        return scores.softmax(dim=-1)

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        """Predictions of every model, ``[models, batch, n_out]``, for ``[batch, L, d_token]`` and ``[batch, d_token]``.

        Raises:
            ValueError: if the widths are not those of the model's tokens.
        """
        width = self.query.shape[-1]
        if context.shape[-1] != width or query.shape != (len(context), width):
            raise ValueError(
                f"context and query must be [batch, L, {width}] and [batch, {width}], "
                f"got {tuple(context.shape)} and {tuple(query.shape)}"
            )
        query_key, output_value = self.circuits()
        batch, total, n_out = len(context), len(query_key), output_value.shape[1]
        directions = (query @ query_key.reshape(total * width, width).mT).view(batch, total, width)
        attended = torch.bmm(self.weights(torch.bmm(directions, context.mT)), context)  # [batch, heads, width]
        readout = torch.einsum("hm,hod->hdmo", self._owners.to(output_value), output_value)
        predictions = attended.view(batch, total * width) @ readout.reshape(total * width, -1)
        return predictions.view(batch, len(self.heads), n_out).transpose(0, 1)

    @torch.no_grad()
    def _initialize(self, initialization: Initialization) -> None:
        width = self.query.shape[-1]
        for parameter in (self.query, self.key, self.value):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        for output, heads in zip(self.output.split(self.heads), self.heads, strict=True):
            nn.init.uniform_(output, -((heads * width) ** -0.5), (heads * width) ** -0.5)
        identity = torch.eye(width)
        match initialization:
            case "uniform":
                pass
            case "small_id_qk":
                for parameter in (self.query, self.key):
                    parameter.copy_(1e-4 * identity)
            case "small_id" | "oppo_small_id":
                for parameter in (self.query, self.key, self.value):
                    parameter.copy_(1e-6 * identity)
                if initialization == "oppo_small_id":
                    for parameter in (self.query, self.value):
                        for part, heads in zip(parameter.split(self.heads), self.heads, strict=True):
                            part[-(heads // 2) or heads :].neg_()
            case _:
                raise ValueError(
                    f"initialization must be uniform, small_id, small_id_qk or oppo_small_id, got {initialization!r}"
                )


class LinearICL(MultiHeadICL):
    """The same without softmax: weights are the scores over the length of the contexts in training.

    That length is a constant: in a longer context the weights are not made smaller.

    Args:
        d_token, heads, n_out, initialization: as of `MultiHeadICL`.
        length: tokens of a context in training.

    Raises:
        ValueError: if length is not positive.
    """

    def __init__(
        self,
        d_token: int,
        heads: Sequence[int] = (2,),
        n_out: int = 1,
        initialization: Initialization = "uniform",
        *,
        length: int = 40,
    ) -> None:
        super().__init__(d_token, heads, n_out, initialization)
        if length < 1:
            raise ValueError(f"length must be positive, got {length}")
        self.length = length

    def weights(self, scores: Tensor) -> Tensor:
        """Scores over the length in training."""
        return scores / self.length


class SideBySide(nn.Module):
    """Models of several classes on the same prompts.

    Args:
        models: as many as there are.
    """

    def __init__(self, *models: MultiHeadICL) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.heads = tuple(number for model in models for number in model.heads)

    def circuits(self) -> Circuits:
        """Those of all models."""
        return Circuits(
            *map(torch.cat, zip(*(cast(MultiHeadICL, model).circuits() for model in self.models), strict=True))
        )

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        """Predictions of all models, ``[models, batch, n_out]``."""
        return torch.cat([model(context, query) for model in self.models])
