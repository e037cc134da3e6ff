"""The paper's figures, drawn from what the experiments measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attn.shared_eval.claims import Outcome
from attn.shared_eval.plots import COLORS

LABELS = {
    "1": "softmax, 1 head",
    "2": "softmax, 2 heads",
    "4": "softmax, 4 heads",
    "linear": "linear, 2 heads",
    "gd": "gradient descent",
    "debiased": "debiased gradient descent",
    "ridge": "ridge (Bayes)",
    "two_heads": "two heads",
    "single_head": "single head of L = 40",
    "tuned_head": "single head, tuned",
}
STYLES = {  # color and line of what the figures of risks compare
    "1": (COLORS[3], "o-"),
    "single_head": (COLORS[3], "o-"),
    "tuned_head": (COLORS[3], "s:"),
    "2": (COLORS[0], "o-"),
    "two_heads": (COLORS[0], "o-"),
    "4": (COLORS[5], "s--"),
    "linear": (COLORS[1], "o-"),
    "gd": (COLORS[4], "^:"),
    "debiased": (COLORS[2], "v:"),
    "ridge": (COLORS[6], "-"),
}


def circuits(outcome: Outcome, numbers: Sequence[int]) -> Figure:
    """Query-key circuits and, below, output-value circuits: a column for each head, one color scale for each kind."""
    heads = [(number, head) for number in numbers for head in range(number)]
    figure = Figure(figsize=(1.35 * len(heads) + 0.6, 2.6))
    axes = figure.subplots(2, len(heads), height_ratios=[6, 1], squeeze=False)
    for row, kind in enumerate(("query_key", "output_value")):
        values = {number: outcome.arrays[f"{kind}_{number}"] for number in numbers}
        # The column of the query's label multiplies zero.
        shown = {number: value[..., :-1] if row == 0 else value for number, value in values.items()}
        limit = max(np.abs(value).max() for value in shown.values())
        for column, (number, head) in enumerate(heads):
            panel = axes[row, column]
            image = panel.imshow(shown[number][head], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(visible=False)
            heading = f"{number} head{'s' * (number > 1)}, no. {head + 1}"
            panel.set_title((heading, rf"$\mu$ = {values[number][head, 0, -1]:.2f}")[row], fontsize=8)
        axes[row, 0].set_ylabel(("$KQ$, key", "$OV$")[row])
        if row == 0:
            figure.colorbar(image, ax=axes[row], fraction=0.02, pad=0.01)
    return figure


def dynamics(outcome: Outcome, numbers: Sequence[int]) -> Figure:
    """Panels of omega, and of mu below: a column of panels for each number of heads, a line for each head."""
    figure = Figure(figsize=(9.0, 4.6))
    panels = figure.subplots(2, len(numbers), sharex=True, sharey="row", squeeze=False)
    for row, (name, symbol) in enumerate((("omega", r"$\omega$"), ("mu", r"$\mu$"))):
        for panel, number in zip(panels[row], numbers, strict=True):
            for head in range(number):
                panel.semilogx(
                    outcome.arrays["steps"], outcome.arrays[f"{name}_{number}"][:, head], label=f"head {head + 1}"
                )
            panel.axhline(0, color="0.6", linewidth=0.8)
            if row == 0:
                panel.set_title(f"{number} head{'s' * (number > 1)}")
                panel.legend(fontsize=7)
            else:
                panel.set_xlabel("training step")
        panels[row, 0].set_ylabel(symbol)
    return figure


def risk_by_length(outcomes: Sequence[Outcome]) -> Figure:
    """Mean squared error against the length of the prompt, means over seeds."""
    figure = Figure(figsize=(7.5, 3.8))
    axes = figure.subplots()
    lengths = outcomes[0].arrays["lengths"]
    for name in ("1", "2", "4", "linear", "gd", "debiased", "ridge"):
        curve = np.mean([outcome.arrays[f"curve_{name}"] for outcome in outcomes], axis=0)
        color, line = STYLES[name]
        axes.plot(lengths, curve, line, color=color, label=LABELS[name], markersize=4)
    axes.axvline(40, color="0.6", linewidth=0.8, linestyle="--")
    axes.annotate(
        "length in training", (40, 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="bottom"
    )
    _risk_axes(axes)
    axes.set_xscale("log")
    axes.set_xticks([10, 20, 40, 80, 160], ["10", "20", "40", "80", "160"])
    axes.minorticks_off()
    return figure


def closed_form(outcomes: Sequence[Outcome]) -> Figure:
    """Risk of the closed forms against the length of the prompt, means over seeds."""
    figure = Figure(figsize=(7.5, 3.6))
    axes = figure.subplots()
    lengths = outcomes[0].arrays["lengths"]
    for name in ("single_head", "tuned_head", "two_heads", "gd", "debiased", "ridge"):
        curve = [np.mean([outcome.figures[f"{name}_{length}"] for outcome in outcomes]) for length in lengths]
        color, line = STYLES[name]
        axes.plot(lengths, curve, line, color=color, label=LABELS[name], markersize=4)
    _risk_axes(axes)
    axes.set_ylim(0.09, 1)
    return figure


def proportional(outcomes: Sequence[Outcome]) -> Figure:
    """Risk of two heads and of the Bayes predictor against d / L: d = 20 as dots, the limits as lines."""
    figure = Figure()
    axes = figure.subplots()
    arrays = outcomes[0].arrays
    for name in ("two_heads", "ridge"):
        color = STYLES[name][0]
        axes.loglog(arrays["limit_ratios"], arrays[f"limit_{name}"], color=color, label=f"{LABELS[name]}, limit")
        for number, outcome in enumerate(outcomes):
            label = f"{LABELS[name]}, d = 20" if number == 0 else None
            axes.loglog(outcome.arrays["ratios"], outcome.arrays[name], "o", color=color, markersize=4, label=label)
    ticks = arrays["ratios"]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([0.1, 0.2, 0.4], ["0.1", "0.2", "0.4"])
    axes.minorticks_off()
    axes.set_xlabel("d / L")
    axes.set_ylabel("mean squared error")
    axes.legend()
    return figure


def gradient_flow(outcomes: Sequence[Outcome]) -> Figure:
    """omega, mu and the sum of their product over time, for one and two heads; a line for each head and seed."""
    figure = Figure(figsize=(9.0, 3.2))
    panels = figure.subplots(1, 3)
    for number, color in ((1, COLORS[3]), (2, COLORS[0])):
        for index, outcome in enumerate(outcomes):
            omega, mu = (outcome.arrays[f"{name}_{number}"] for name in ("omega", "mu"))
            time = np.arange(len(omega)) / 10  # every tenth step of 0.01
            label = f"{number} head{'s' * (number > 1)}" if index == 0 else None
            for panel, values in zip(panels, (omega, mu, (omega * mu).sum(-1)), strict=True):
                lines = panel.plot(time, values, color=color, linewidth=1.0)
                lines[0].set_label(label)
    for panel, title in zip(panels, (r"$\omega$", r"$\mu$", r"step $\sum_h \omega^h \mu^h$"), strict=True):
        panel.set_title(title)
        panel.set_xlabel("time of gradient flow")
    panels[0].legend()
    return figure


def preconditioner(outcomes: Sequence[Outcome]) -> Figure:
    """The learned matrix and the best preconditioner, each over its largest entry, and distances from candidates."""
    figure = Figure(figsize=(9.0, 3.0))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    for panel, name, title in ((left, "learned", "learned"), (middle, "preconditioner", "best preconditioner")):
        matrix = outcomes[0].arrays[name]
        image = panel.imshow(matrix / np.abs(matrix).max(), cmap="RdBu_r", vmin=-1, vmax=1)
        panel.set_title(title)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
    figure.colorbar(image, ax=middle, fraction=0.05)
    bars = {
        "error_preconditioner": "best preconditioner",
        "error_inverse": "inverse covariance",
        "error_identity": "identity",
        "error_preconditioner_isotropic": "trained isotropically:\nbest preconditioner",
    }
    values = np.array([[outcome.figures[name] for outcome in outcomes] for name in bars])
    right.barh(range(len(bars)), values.mean(1), color=[COLORS[0], "0.7", "0.7", "0.7"])
    for seed in range(len(outcomes)):
        right.plot(values[:, seed], range(len(bars)), "k.", markersize=4)
    right.set_yticks(range(len(bars)), list(bars.values()))
    right.invert_yaxis()
    right.grid(visible=False, axis="y")
    right.set_title("distance from nearest multiple")
    return figure


def multi_task(outcome: Outcome, numbers: Sequence[int]) -> Figure:
    """A row of panels for each number of heads: diagonals of the query-key circuits, and entries of the labels."""
    figure = Figure(figsize=(7.5, 1.7 * len(numbers) + 0.6))
    panels = figure.subplots(len(numbers), 2, width_ratios=[3, 1], squeeze=False)
    tasks, d = outcome.arrays["indicators"].shape
    for row, number in enumerate(numbers):
        for panel, name in zip(panels[row], ("diagonals", "mu"), strict=True):
            values = outcome.arrays[f"{name}_{number}"]
            limit = np.abs(values).max()
            image = panel.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            figure.colorbar(image, ax=panel, fraction=0.05)
            panel.set_yticks(range(number), [f"head {head + 1}" for head in range(number)])
            panel.grid(visible=False)
        panels[row, 0].set_ylabel(f"{number} heads")
        panels[row, 0].set_xticks(range(d), [f"$x_{i + 1}$" for i in range(d)])
        panels[row, 1].set_xticks(range(tasks), [f"task {t + 1}" for t in range(tasks)])
    panels[0, 0].set_title("diagonal of $KQ$")
    panels[0, 1].set_title("label in $OV$")
    return figure


def _risk_axes(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the context, L")
    axes.set_ylabel("mean squared error")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
