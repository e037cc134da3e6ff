"""The paper's figures, drawn from what the experiments measured."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attn.shared_eval.claims import Outcome
from attn.shared_eval.plots import COLORS

Bars = Mapping[str, str]  # name of a figure: what the plot calls it

LABELS = {
    "softmax": "softmax",
    "hedgehog": "Hedgehog",
    "hedgehog_undistilled": "Hedgehog,\nundistilled",
    "t2r": "T2R",
    "t2r_without_bias": "T2R,\nwithout bias",
    "t2r_undistilled": "T2R,\nundistilled",
    "taylor": "Taylor",
    "elu": "1+ELU",
    "relu": "ReLU",
    "performer": "Performer",
    "cosformer": "cosFormer",
    "shuffled": "shuffled\nteacher",
    "random_map": "random map",
}


def dots(outcomes: Sequence[Outcome], bars: Bars, title: str) -> Figure:
    """One panel: the mean of each figure as a bar, each seed as a dot."""
    figure = Figure()
    _draw_bars(figure.subplots(), outcomes, bars, title)
    return figure


def two_panels(outcomes: Sequence[Outcome], left: tuple[Bars, str], right: tuple[Bars, str]) -> Figure:
    """Two panels like `dots`, each of named figures and a title."""
    figure = Figure(figsize=(9.0, 3.6))
    for axes, (bars, title) in zip(figure.subplots(1, 2), (left, right), strict=True):
        _draw_bars(axes, outcomes, bars, title)
    return figure


def weight_maps(outcome: Outcome) -> Figure:
    """Attention weights of the rows of the queries, a panel for each map; every panel has its own range of color."""
    names = [name.removeprefix("weights_") for name in outcome.arrays]
    figure = Figure(figsize=(9.0, 2.6 * -(-len(names) // 4)))
    for axes, name in zip(figure.subplots(-(-len(names) // 4), 4).flat, names, strict=False):
        axes.imshow(outcome.arrays[f"weights_{name}"], cmap="magma", aspect="auto", vmin=0)
        axes.set_title(LABELS[name].replace("\n", " "), fontsize=9)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
        axes.grid(visible=False)
    return figure


def spikiness_and_order(outcomes: Sequence[Outcome], names: Sequence[str]) -> Figure:
    """Entropy of rows against order agreement, a dot for each map and seed."""
    figure = Figure()
    axes = figure.subplots()
    for number, name in enumerate(names):
        entropy = [outcome.figures[f"entropy_{name}"] for outcome in outcomes]
        order = [outcome.figures[f"order_{name}"] for outcome in outcomes]
        color, marker = COLORS[number % len(COLORS)], "os"[number // len(COLORS)]
        axes.scatter(entropy, order, color=color, marker=marker, s=24, label=LABELS[name].replace("\n", " "))
    axes.set_xlabel("entropy of attention rows, nats (lower is spikier)")
    axes.set_ylabel("share of key pairs ordered as their scores")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def cost(outcome: Outcome) -> Figure:
    """Operations and peak memory over tokens, both axes logarithmic."""
    figure = Figure(figsize=(9.0, 3.6))
    for axes, quantity, title in zip(
        figure.subplots(1, 2), ("flops", "bytes"), ("floating-point operations", "peak memory, bytes"), strict=True
    ):
        for name in ("softmax", "hedgehog"):
            axes.loglog(
                outcome.arrays["tokens"], outcome.arrays[f"{quantity}_{name}"], "o-", label=LABELS[name], base=2
            )
        axes.set_xlabel("tokens")
        axes.set_title(title)
        axes.legend()
    return figure


def _draw_bars(axes: Axes, outcomes: Sequence[Outcome], bars: Bars, title: str) -> None:
    values = np.array([[outcome.figures[name] for outcome in outcomes] for name in bars])
    positions = np.arange(len(bars))
    emphasis = {"softmax": COLORS[0], "hedgehog": COLORS[1]}
    colors = [emphasis.get(label, "0.7") for label in bars.values()]
    axes.barh(positions, values.mean(axis=1), color=colors)
    for seed in range(values.shape[1]):
        axes.plot(values[:, seed], positions, "k.", markersize=4)
    axes.set_yticks(positions, [LABELS.get(label, label) for label in bars.values()])
    axes.invert_yaxis()
    axes.set_title(title)
    axes.grid(visible=False, axis="y")
