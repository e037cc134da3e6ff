"""Feature maps of linear attention: Hedgehog's (section 4 of the paper) and those that it is compared with (table 2).

Every map is a `FeatureMap`: it turns queries or keys ``[batch, heads, tokens, head_dim]`` into features
``[batch, heads, tokens, num_features]``, whose dot products take the place of ``exp(q.k / sqrt(head_dim))``.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["softmax_dim", "exp", "exp_dim", "joint_softmax"]
Initialization = Literal["identity", "kaiming"]

FEATURE_FLOOR = 1e-12


class HeadwiseLinear(nn.Module):
    """One linear map per head: ``u = x W + b`` with W in ``[num_heads, head_dim, feature_dim]``.

    The form ``x + x W`` that starts from W = 0 (LoLCATs' skip connection) is this map with ``I + W``: the same function
    and, without weight decay, the same updates. It therefore has no option of its own.

    Args:
        num_heads: number of maps; 1 is one map shared by all heads (as in flash-linear-attention).
        head_dim: width of a query or key.
        feature_dim: width of u.
        bias: add b, ``[num_heads, 1, feature_dim]``, which starts from zero.
        init: ``"identity"`` (the paper's; the rectangular identity where the widths differ) or ``"kaiming"``:
            Kaiming-uniform on the whole weight tensor, as LoLCATs draws it (fan-in head_dim * feature_dim).
    """

    def __init__(
        self, num_heads: int, head_dim: int, feature_dim: int, *, bias: bool = False, init: Initialization = "identity"
    ) -> None:
        super().__init__()
        if init not in get_args(Initialization):
            raise ValueError(f"init must be one of {get_args(Initialization)}, got {init!r}")
        if feature_dim < 1:
            raise ValueError(f"feature_dim must be positive, got {feature_dim}")
        self.init = init
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, feature_dim))
        self.bias = nn.Parameter(torch.empty(num_heads, 1, feature_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again as `init` says."""
        with torch.no_grad():
            if self.init == "identity":
                self.weight.copy_(torch.eye(*self.weight.shape[1:]))
            else:
                nn.init.kaiming_uniform_(self.weight)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The pre-activations u ``[batch, heads, tokens, feature_dim]`` of x ``[batch, heads, tokens, head_dim]``."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        u = torch.matmul(x.to(dtype), self.weight.to(dtype))
        return u if self.bias is None else u + self.bias

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        heads, head_dim, feature_dim = self.weight.shape
        return f"num_heads={heads}, head_dim={head_dim}, feature_dim={feature_dim}, init={self.init!r}"


class FeatureMap(nn.Module):
    """A map phi from queries or keys to features (abstract): an optional projection, then `activate`.

    Args:
        num_heads: heads of the input; 1 also serves any number of heads with the same map.
        head_dim: width of a query or key.

    Attributes:
        num_features: width of the features.
        projection: what makes the pre-activations u from x; the identity in maps that are not trained.
        uses_positions: whether the features depend on the token's position.
    """

    num_features: int
    uses_positions = False

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        for name, number in (("num_heads", num_heads), ("head_dim", head_dim)):
            if number < 1:
                raise ValueError(f"{name} must be positive, got {number}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_features = head_dim
        self.projection: nn.Module = nn.Identity()

    def activate(self, u: Tensor) -> Tensor:
        """The features of the pre-activations u ``[batch, heads, tokens, feature_dim]`` (float32 or float64)."""
        raise NotImplementedError

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Features ``[batch, heads, tokens, num_features]`` of x, in float32 (float64 for float64).

        Half-precision inputs are projected in their own or the weights' precision and activated in float32, because
        products of features at their floor of 1e-12 vanish in float16.

        Args:
            x: queries or keys, ``[batch, heads, tokens, head_dim]``, after rotary embedding if the model has one.
            positions: ``[tokens]`` or ``[batch, tokens]``, counted from 0; read only by maps with `uses_positions`,
                for which the default is ``0, 1, 2, ...``.

        Raises:
            ValueError: if the shape of x does not fit.
        """
        if x.ndim != 4 or x.shape[-1] != self.head_dim or self.num_heads not in (1, x.shape[1]):
            expected = f"[batch, {self.num_heads if self.num_heads > 1 else 'heads'}, tokens, {self.head_dim}]"
            raise ValueError(f"x must have the shape {expected}, got {tuple(x.shape)}")
        u = self.projection(x)
        return self.activate(u.to(torch.promote_types(u.dtype, torch.float32)))


class HedgehogFeatureMap(FeatureMap):
    r"""Hedgehog's trainable spiky and monotone map (section 4): an exponential of one linear map per head.

    With ``u = x W + b`` and negation, the features are, by `activation`:

    - ``"softmax_dim"`` (default; the paper's remark on stability): ``[softmax(u), softmax(-u)]``, at least 1e-12;
    - ``"exp"`` (the paper's equation): ``[exp(u), exp(-u)]``, which overflows float32 for ``|u| > 88``;
    - ``"exp_dim"`` (LoLCATs): ``[exp(u - max u), exp(-u + min u)]``, at least 1e-12;
    - ``"joint_softmax"`` (flash-linear-attention): ``softmax([2u, -2u])``, one normalizer for both halves, no floor.

    The normalizers of queries cancel in the output; those of keys re-weight them: the four are different kernels.

    Args:
        num_heads: heads, each with its own W; 1 is one W shared by all.
        head_dim: width of a query or key.
        feature_dim: width of u; None is head_dim, the paper's. With negation there are ``2 * feature_dim`` features.
        activation: see above.
        negation: append the features of -u; without it (LoLCATs' half space) there are feature_dim features.
        bias: add a bias per head and feature; the paper has none.
        init: ``"identity"`` (the paper's: before training the features are those of x itself) or ``"kaiming"``.

    Raises:
        ValueError: if activation or init is unknown, or a size is not positive.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        feature_dim: int | None = None,
        *,
        activation: Activation = "softmax_dim",
        negation: bool = True,
        bias: bool = False,
        init: Initialization = "identity",
    ) -> None:
        super().__init__(num_heads, head_dim)
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {get_args(Activation)}, got {activation!r}")
        feature_dim = head_dim if feature_dim is None else feature_dim
        self.activation = activation
        self.negation = negation
        self.projection = HeadwiseLinear(num_heads, head_dim, feature_dim, bias=bias, init=init)
        self.num_features = 2 * feature_dim if negation else feature_dim

    def activate(self, u: Tensor) -> Tensor:
        """The features of u by `activation`."""
        halves = [u, -u] if self.negation else [u]
        match self.activation:
            case "softmax_dim":
                return torch.cat([half.softmax(dim=-1) for half in halves], dim=-1).clamp(min=FEATURE_FLOOR)
            case "exp":
                return torch.cat(halves, dim=-1).exp()
            case "exp_dim":
                shifted = [half - half.amax(dim=-1, keepdim=True) for half in halves]
                return torch.cat(shifted, dim=-1).exp().clamp(min=FEATURE_FLOOR)
            case _:
                return (2 * torch.cat(halves, dim=-1)).softmax(dim=-1)

    def extra_repr(self) -> str:
        """The variant, for ``print(module)``."""
        return f"activation={self.activation!r}, negation={self.negation}"


class EluFeatureMap(FeatureMap):
    """``1 + elu(x)`` (Katharopoulos et al., 2020), at least 1e-12.

    Args:
        num_heads: heads of the input.
        head_dim: width of a query or key.
        learned: act on ``x W`` with a W per head that starts from the identity (as LoLCATs does), not on x.
    """

    def __init__(self, num_heads: int, head_dim: int, *, learned: bool = False) -> None:
        super().__init__(num_heads, head_dim)
        if learned:
            self.projection = HeadwiseLinear(num_heads, head_dim, head_dim)

    def activate(self, u: Tensor) -> Tensor:
        """``1 + elu(u)``."""
        return (1 + nn.functional.elu(u)).clamp(min=FEATURE_FLOOR)


class ReluFeatureMap(FeatureMap):
    """``relu(x)``, at least 1e-12 because a row of zeros has no weights.

    Args:
        num_heads: heads of the input.
        head_dim: width of a query or key.
        learned: act on ``x W`` with a W per head that starts from the identity, not on x.
    """

    def __init__(self, num_heads: int, head_dim: int, *, learned: bool = False) -> None:
        super().__init__(num_heads, head_dim)
        if learned:
            self.projection = HeadwiseLinear(num_heads, head_dim, head_dim)

    def activate(self, u: Tensor) -> Tensor:
        """``relu(u)``."""
        return nn.functional.relu(u).clamp(min=FEATURE_FLOOR)


class T2RFeatureMap(FeatureMap):
    """``relu(x W + b)``, the map of Transformer-to-RNN (Kasai et al., 2021), at least 1e-12.

    Args:
        num_heads: heads, each with its own W and b.
        head_dim: width of a query or key.
        feature_dim: number of features; None is head_dim.
        bias: add b.
        init: ``"kaiming"`` (LoLCATs') or ``"identity"``.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        feature_dim: int | None = None,
        *,
        bias: bool = True,
        init: Initialization = "kaiming",
    ) -> None:
        super().__init__(num_heads, head_dim)
        self.num_features = head_dim if feature_dim is None else feature_dim
        self.projection = HeadwiseLinear(num_heads, head_dim, self.num_features, bias=bias, init=init)

    def activate(self, u: Tensor) -> Tensor:
        """``relu(u)``."""
        return nn.functional.relu(u).clamp(min=FEATURE_FLOOR)


class ExpFeatureMap(FeatureMap):
    """``exp(t x)`` by element (table 2, t = 1 and 2): spikier with t; overflows float32 for ``t x > 88``.

    Args:
        num_heads: heads of the input.
        head_dim: width of a query or key.
        t: the factor, positive.
    """

    def __init__(self, num_heads: int, head_dim: int, *, t: float = 1.0) -> None:
        super().__init__(num_heads, head_dim)
        if not t > 0:
            raise ValueError(f"t must be positive, got {t}")
        self.t = t

    def activate(self, u: Tensor) -> Tensor:
        """``exp(t u)``."""
        return (self.t * u).exp()


class TaylorFeatureMap(FeatureMap):
    """``[1, x', vec(x' x'^T) / sqrt(2)]`` of ``x' = x / head_dim^(1/4)``: the second-order Taylor map.

    Its kernel is ``1 + s + s^2 / 2`` at ``s = q.k / sqrt(head_dim)``, positive for every s, with
    ``1 + head_dim + head_dim^2`` features.

    Args:
        num_heads: heads of the input.
        head_dim: width of a query or key.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__(num_heads, head_dim)
        self.num_features = 1 + head_dim + head_dim**2

    def activate(self, u: Tensor) -> Tensor:
        """The monomials of u up to degree two."""
        u = u / self.head_dim**0.25
        pairs = (u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2) / math.sqrt(2)
        return torch.cat([torch.ones_like(u[..., :1]), u, pairs], dim=-1)


class PerformerFeatureMap(FeatureMap):
    """Positive random features (Choromanski et al., 2021): ``exp(Omega x' - |x'|^2 / 2) / sqrt(m)``.

    ``x' = x / head_dim^(1/4)``, so that the dot product of two tokens' features estimates ``exp(q.k / sqrt(head_dim))``
    without bias. Omega is fixed: Gaussian rows, orthogonal within each block of head_dim rows, drawn per head from
    `seed`. Queries and keys must share it, hence the seed.

    Args:
        num_heads: heads, each with its own Omega.
        head_dim: width of a query or key.
        num_random_features: m; None is ``2 * head_dim``, the size of Hedgehog's map. The bound of the Performer paper
            asks for about ``head_dim * log(head_dim)``.
        seed: of Omega.
        stabilize: subtract each token's largest exponent. It cancels in the normalized output for queries, so that no
            query overflows; it would re-weight keys. Omega bounds the exponent by ``max |omega|^2 / 2`` in any case.
    """

    random_features: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_random_features: int | None = None,
        *,
        seed: int = 0,
        stabilize: bool = False,
    ) -> None:
        super().__init__(num_heads, head_dim)
        self.num_features = 2 * head_dim if num_random_features is None else num_random_features
        if self.num_features < 1:
            raise ValueError(f"num_random_features must be positive, got {num_random_features}")
        self.stabilize = stabilize
        omega = orthogonal_gaussian(num_heads, self.num_features, head_dim, seed=seed)
        self.register_buffer("random_features", omega)

    def activate(self, u: Tensor) -> Tensor:
        """The positive random features of u."""
        u = u / self.head_dim**0.25
        exponent = u @ self.random_features.to(u.dtype).mT - u.square().sum(dim=-1, keepdim=True) / 2
        if self.stabilize:
            exponent = exponent - exponent.amax(dim=-1, keepdim=True).detach()
        return exponent.exp() / math.sqrt(self.num_features)


class CosformerFeatureMap(FeatureMap):
    """``relu(x)`` re-weighted by position (cosFormer; Qin et al., 2022).

    The features of the token at position i are ``[r cos(pi i / 2M), r sin(pi i / 2M)]`` with ``r = relu(x)``, at least
    1e-12, so that a pair of tokens scores ``relu(q).relu(k) cos(pi (i - j) / 2M)``. M is part of the map: decoding with
    another M than the prompt's is another function.

    Args:
        num_heads: heads of the input.
        head_dim: width of a query or key.
        max_positions: M, at least the length of the longest sequence, prompt and generated tokens together.
    """

    uses_positions = True

    def __init__(self, num_heads: int, head_dim: int, *, max_positions: int = 2048) -> None:
        super().__init__(num_heads, head_dim)
        if max_positions < 1:
            raise ValueError(f"max_positions must be positive, got {max_positions}")
        self.max_positions = max_positions
        self.num_features = 2 * head_dim

    def activate(self, u: Tensor) -> Tensor:
        """``relu(u)``."""
        return nn.functional.relu(u).clamp(min=FEATURE_FLOOR)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Features ``[batch, heads, tokens, 2 * head_dim]`` of x at its positions; see `FeatureMap.forward`.

        Raises:
            ValueError: if positions do not fit x or reach `max_positions`.
        """
        rectified = super().forward(x)
        batch, _, tokens, _ = x.shape
        if positions is None:
            positions = torch.arange(tokens, device=x.device)
        if positions.shape not in ((tokens,), (batch, tokens)):
            expected = f"[{tokens}] or [{batch}, {tokens}]"
            raise ValueError(f"positions must have the shape {expected}, got {tuple(positions.shape)}")
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < self.max_positions:
            limits = f"{int(positions.min())} to {int(positions.max())}"
            raise ValueError(f"positions must lie in 0 to max_positions - 1 = {self.max_positions - 1}, got {limits}")
        angle = positions.to(rectified.dtype).unsqueeze(-1) * (math.pi / (2 * self.max_positions))
        if angle.ndim == 3:
            angle = angle.unsqueeze(1)
        return torch.cat([rectified * angle.cos(), rectified * angle.sin()], dim=-1)


def orthogonal_gaussian(num_heads: int, rows: int, head_dim: int, *, seed: int) -> Tensor:
    """Gaussian rows that are orthogonal within each block of head_dim, ``[num_heads, rows, head_dim]``, float32.

    Directions come from the QR decomposition of Gaussian matrices and lengths from separate Gaussian vectors, so that
    every row by itself is a standard Gaussian.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = math.ceil(rows / head_dim)
    shape = (num_heads, blocks, head_dim, head_dim)
    q, r = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu"))
    # QR alone fixes the signs of r's diagonal; undoing that makes q uniform over the orthogonal group.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").norm(dim=-1, keepdim=True)
    return (q.mT * lengths).flatten(1, 2)[:, :rows].float()


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    "hedgehog": HedgehogFeatureMap,
    "elu": EluFeatureMap,
    "relu": ReluFeatureMap,
    "performer": PerformerFeatureMap,
    "cosformer": CosformerFeatureMap,
    "t2r": T2RFeatureMap,
    "exp": ExpFeatureMap,
    "taylor": TaylorFeatureMap,
}


def feature_map(name: str, num_heads: int, head_dim: int, **options: Any) -> FeatureMap:
    """The feature map called `name`, one of `FEATURE_MAPS`, with its class's options.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if the map does not have an option.
    """
    if name not in FEATURE_MAPS:
        raise ValueError(f"name must be one of {', '.join(FEATURE_MAPS)}, got {name!r}")
    return FEATURE_MAPS[name](num_heads, head_dim, **options)


def query_key_maps(name: str, num_heads: int, head_dim: int, **options: Any) -> tuple[FeatureMap, FeatureMap]:
    """A map for queries and one for keys, which share nothing that is trained (the paper's choice).

    Performer's maps share Omega, and the one for queries is stabilized.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if the map does not have an option.
    """
    query_map = feature_map(name, num_heads, head_dim, **options)
    key_map = feature_map(name, num_heads, head_dim, **options)
    if isinstance(query_map, PerformerFeatureMap):
        query_map.stabilize = True
    return query_map, key_map
