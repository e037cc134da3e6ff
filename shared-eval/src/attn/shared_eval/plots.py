"""The one look of every plot: matplotlib settings, and the colors of what is compared."""

from typing import Any

from matplotlib.rcsetup import cycler

__all__ = ["COLORS", "STYLE"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Distinguishable with any color vision (Okabe and Ito, 2008)."""

STYLE: dict[Any, Any] = {
    "figure.figsize": (6.0, 3.6),
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same letters
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
"""Settings for `matplotlib.rc_context`; the claims runner draws every plot under them."""
