"""Who computes an operator: the table of implementations and the choice among them.

A public operator checks its arguments, asks `choose_implementation` for a name, and calls that implementation; a
Triton implementation is imported in the branch that calls it. Implementations of one operator never import one another.
"""

import functools
import importlib.util
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "torch", "triton", "flex"]

AUTO_ORDER = ("flex", "triton", "torch")


@dataclass(frozen=True, kw_only=True)
class Serves:
    """The calls that one implementation of one operator serves.

    Args:
        devices: device types, e.g. ``("cuda",)``; empty means every device.
        dtypes: dtypes of the tensor arguments.
        gradient: whether the result can be differentiated.
        max_head_dim: largest last axis of any tensor argument; None means no limit.
    """

    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    gradient: bool = True
    max_head_dim: int | None = None


TRITON = Serves(devices=("cuda",), dtypes=(torch.float32, torch.bfloat16, torch.float16), max_head_dim=256)

FLEX = TRITON  # FlexAttention compiles to Triton

_DIFFERENTIABLE = {"reference": Serves(), "torch": Serves(), "triton": TRITON}
_FORWARD_ONLY = {
    "reference": Serves(),
    "torch": Serves(gradient=False),
    "triton": replace(TRITON, gradient=False),
}

IMPLEMENTATIONS: dict[str, dict[str, Serves]] = {
    "attention_with_lse": _DIFFERENTIABLE,
    "key_mass": _FORWARD_ONLY,
    "key_moments": _FORWARD_ONLY,
    "suffix_key_mass": _FORWARD_ONLY,
    "row_stats": _FORWARD_ONLY,
    "submap": _DIFFERENTIABLE,
    "tile_stats": _FORWARD_ONLY,
    "mass_by_distance": _FORWARD_ONLY,
    "logit_by_distance": _FORWARD_ONLY,
    "block_sparse_attention": {"reference": Serves(), "torch": Serves()},
    "windowed_attention": _DIFFERENTIABLE,
    "linear_attention": {"reference": Serves(), "torch": Serves(), "triton": replace(TRITON, max_head_dim=None)},
    "mimicry_cross_entropy": {"reference": Serves(), "torch": Serves()},
    "mix_values": {"reference": Serves(), "torch": Serves()},
    "scale_keys": {"reference": Serves(), "torch": Serves()},
    "swap_map": {"reference": Serves(), "torch": Serves()},
    "remap_columns": {"reference": Serves(), "torch": Serves()},
    "decay_outside_window": {"reference": Serves(), "torch": Serves(), "flex": FLEX},
    "boost_keys": {"reference": Serves(), "torch": Serves(), "flex": FLEX},
}


def choose_implementation(operator: str, impl: str, *tensors: Tensor) -> str:
    """The name of the implementation that computes this call of an operator.

    ``"auto"`` takes FlexAttention or else Triton on CUDA devices and the PyTorch form elsewhere, each if it serves the
    call; it never takes the reference. Any other name is taken at its word.

    Args:
        operator: a key of `IMPLEMENTATIONS`.
        impl: ``"auto"``, ``"reference"``, ``"torch"``, ``"triton"`` or ``"flex"``.
        tensors: the floating-point arguments of the call; their device, dtype, last axis and need of a gradient decide.

    Raises:
        ValueError: if ``impl`` is none of the five names.
        NotImplementedError: if the named implementation, or with ``"auto"`` every one, does not serve the call.
    """
    if impl not in ("auto", "reference", "torch", "triton", "flex"):
        raise ValueError(f"impl must be 'auto', 'reference', 'torch', 'triton' or 'flex', got {impl!r}")
    table = IMPLEMENTATIONS[operator]
    serving = [name for name in (*AUTO_ORDER, "reference") if name in table and not _refusal(table[name], tensors)]
    if impl == "auto" and serving and serving[0] != "reference":
        return serving[0]
    if impl in table:
        # The interpreter runs Triton kernels on any device: a test may ask for it by name, `auto` never takes it.
        # So does FlexAttention, in a dense form that has no gradient.
        dense = impl == "flex" and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        any_device = dense or (impl == "triton" and _triton_interprets())
        refusal = _refusal(table[impl], tensors, any_device=any_device)
        if not refusal:
            return impl
    else:
        refusal = "does not exist"
    advice = f"impl={serving[0]!r} serves this call" if serving else "no implementation serves this call"
    raise NotImplementedError(f"impl={impl!r} of {operator} {refusal if impl != 'auto' else 'finds none'}; {advice}")


def _refusal(serves: Serves, tensors: tuple[Tensor, ...], *, any_device: bool = False) -> str:
    """Why an implementation does not serve a call, empty if it does."""
    for tensor in tensors:
        device = tensor.device.type
        if serves.devices and device not in serves.devices and not any_device:
            return f"serves device {' or '.join(serves.devices)}, got {device}"
        if tensor.dtype not in serves.dtypes:
            return f"serves dtype {' or '.join(map(_short, serves.dtypes))}, got {_short(tensor.dtype)}"
        if serves.max_head_dim is not None and tensor.shape[-1] > serves.max_head_dim:
            return f"serves a last axis up to {serves.max_head_dim}, got {tensor.shape[-1]}"
        if not serves.gradient and torch.is_grad_enabled() and tensor.requires_grad:
            return "has no gradient, got an argument that requires one"
    if serves.devices and not any_device and not _triton_installed():
        return "needs the package triton, which is not installed"
    return ""


@torch.compiler.assume_constant_result
@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _triton_interprets() -> bool:
    if not _triton_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def capability_table() -> str:
    """`IMPLEMENTATIONS` as a Markdown table, one row per operator and implementation."""
    rows = ["| operator | impl | device | dtype | last axis | gradient |", "|---|---|---|---|---|---|"]
    for operator, table in IMPLEMENTATIONS.items():
        for impl, serves in table.items():
            cells = (
                f"`{operator}`",
                f"`{impl}`",
                ", ".join(serves.devices) or "any",
                ", ".join(map(_short, serves.dtypes)),
                "any" if serves.max_head_dim is None else f"up to {serves.max_head_dim}",
                "yes" if serves.gradient else "no",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
