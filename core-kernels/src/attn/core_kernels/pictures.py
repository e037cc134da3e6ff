"""Pictures of attention: each function draws on matplotlib axes of yours and returns what it drew.

Needs matplotlib, which is not a dependency of the package: the extra ``pictures`` has it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn.core_kernels.sparsify import BlockLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

__all__ = ["draw_block_layout", "draw_layer_curve", "draw_map", "draw_overlay"]


def draw_map(
    axes: "Axes",
    weights: Tensor,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    largest: float | None = None,
) -> "AxesImage":
    """Heat map of a part of the softmax map, or of any matrix, with a label for each token.

    Args:
        axes: where to draw.
        weights: ``[rows, columns]``, e.g. one head of what `submap` returns; NaN is left white.
        row_labels: text of each row's token; None for its index.
        column_labels: text of each column's token; None for its index.
        largest: weight of the darkest color; None for the largest one there is. The lightest is 0.

    Raises:
        TypeError: if the weights are no tensor.
        ValueError: if they are no matrix, or the number of labels is not that of the tokens.
    """
    weights = _checked_matrix("weights", weights)
    image = axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
    for name, labels, axis, count in (
        ("row_labels", row_labels, axes.yaxis, weights.shape[0]),
        ("column_labels", column_labels, axes.xaxis, weights.shape[1]),
    ):
        if labels is None:
            continue
        if len(labels) != count:
            raise ValueError(f"{name} must have {count} labels, got {len(labels)}")
        # A token may hold what matplotlib would read as the start of a formula.
        axis.set_ticks(range(count), [label.replace("$", r"\$") for label in labels])
    if column_labels is not None:
        axes.tick_params(axis="x", rotation=90)
    axes.grid(visible=False)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return image


def draw_overlay(axes: "Axes", image: Tensor, weights: Tensor, *, opacity: float = 0.7) -> "AxesImage":
    """Attention to image patches over the image: opaque where the weight is largest, clear where it is smallest.

    Args:
        axes: where to draw.
        image: ``[3, height, width]`` or ``[height, width, 3]``, floats in [0, 1] or uint8.
        weights: ``[patch_rows, patch_columns]``, stretched over the whole image and smoothed between patches.
        opacity: of the largest weight, in (0, 1].

    Raises:
        TypeError: if an argument is no tensor.
        ValueError: if a shape or the opacity is not as stated.
    """
    weights = _checked_matrix("weights", weights)
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {type(image).__name__}")
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]):
        raise ValueError(f"image must have shape [3, height, width] or [height, width, 3], got {list(image.shape)}")
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity must lie in (0, 1], got {opacity}")
    pixels = image.detach().cpu()
    pixels = pixels if pixels.shape[2] == 3 else pixels.permute(1, 2, 0)
    pixels = pixels.float().clamp(0, 1) if pixels.is_floating_point() else pixels
    height, width = pixels.shape[:2]
    weights = torch.nn.functional.interpolate(
        weights.float()[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    spread = weights.max() - weights.min()
    share = (weights - weights.min()) / spread if spread > 0 else torch.zeros_like(weights)
    axes.imshow(pixels.numpy())
    drawn = axes.imshow(share.numpy(), cmap="YlOrRd", alpha=(opacity * share).numpy())
    axes.set_axis_off()
    return drawn


def draw_layer_curve(axes: "Axes", by_layer: Mapping[int, Tensor], *, label: str | None = None) -> "Line2D":
    """A statistic over layers: a point for each head, and a curve through their means.

    Args:
        axes: where to draw; call again for a second curve.
        by_layer: per layer ``[heads]``, e.g. the mass that one key receives, or the mean entropy of the rows.
        label: name of the curve in a legend.

    Raises:
        TypeError: if a layer's value is no tensor.
        ValueError: if there is no layer, or a value is not ``[heads]`` of at least one head.
    """
    if not by_layer:
        raise ValueError("by_layer must have at least one layer, got none")
    layers = sorted(by_layer)
    for layer in layers:
        heads = by_layer[layer]
        if not isinstance(heads, Tensor):
            raise TypeError(f"by_layer[{layer}] must be a tensor, got {type(heads).__name__}")
        if heads.ndim != 1 or not len(heads):
            raise ValueError(f"by_layer[{layer}] must have shape [heads], got {list(heads.shape)}")
    values = [by_layer[layer].detach().double().cpu() for layer in layers]
    (curve,) = axes.plot(layers, [x.mean().item() for x in values], label=label)
    places = [layer for layer, x in zip(layers, values, strict=True) for _ in x]
    axes.scatter(places, torch.cat(values).tolist(), s=8, alpha=0.5, color=curve.get_color(), linewidths=0)
    axes.set_xlabel("layer")
    axes.locator_params(axis="x", integer=True)
    return curve


def draw_block_layout(axes: "Axes", layout: BlockLayout, *, head: int = 0, batch: int = 0) -> "AxesImage":
    """The blocks that one head of a layout keeps, whole or in part, on axes of tokens.

    Args:
        axes: where to draw.
        layout: the layout.
        head: head of the layout.
        batch: batch row of the layout.

    Raises:
        TypeError: if the layout is none.
        ValueError: if it has no such head or batch row.
    """
    if not isinstance(layout, BlockLayout):
        raise TypeError(f"layout must be a BlockLayout, got {type(layout).__name__}")
    for name, index, count in (("head", head, layout.heads), ("batch", batch, layout.batch)):
        if not 0 <= index < count:
            raise ValueError(f"{name} must lie in [0, {count}), got {index}")
    kept = layout.to_dense_blocks(head, batch).cpu()
    height, width = (blocks * size for blocks, size in zip(kept.shape, layout.block_size, strict=True))
    image = axes.imshow(
        kept.float().numpy(), cmap="Blues", vmin=0, vmax=1.4, extent=(0, width, height, 0), interpolation="nearest"
    )
    axes.set_xlim(0, layout.num_keys)
    axes.set_ylim(layout.num_queries, 0)
    axes.grid(visible=False)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return image


def _checked_matrix(name: str, matrix: Tensor) -> Tensor:
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(matrix).__name__}")
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"{name} must be a matrix of at least one entry, got {list(matrix.shape)}")
    return matrix.detach().float().cpu()
