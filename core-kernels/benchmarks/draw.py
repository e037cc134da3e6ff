"""Draws ``results/*_DEVICE.csv``: time and memory of every operator as shares of what one would use instead."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


def draw_results(device: str) -> None:
    """Draw the tables of ``"cpu"`` or ``"cuda"`` into ``results/DEVICE.png``."""
    rows = [row for path in sorted(RESULTS.glob(f"*_{device}.csv")) for row in read(path)]
    draw(rows, RESULTS / f"{device}.png")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of one table, the share of the baseline's memory added as ``memory_ratio``."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    baseline = {row["shape"]: row for row in rows if row["impl"] == row["baseline"]}
    for row in rows:
        base = baseline.get(row["shape"])
        row["memory_ratio"] = "" if base is None else f"{int(row['peak_bytes']) / max(int(base['peak_bytes']), 1):.4f}"
    return rows


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """One line per operator and implementation, one point per shape, larger for more tokens."""
    rows = [row for row in rows if row["impl"] not in (row["baseline"], "reference") and row["ratio_to_baseline"]]
    names = list(dict.fromkeys(f"{row['operator']}: {row['impl']} / {row['baseline']}" for row in rows))
    figure = Figure(figsize=(10, 0.28 * len(names) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("ratio_to_baseline", "memory_ratio"), ("time, as a share", "peak memory, as a share"), strict=True
    ):
        for row in rows:
            tokens = int(dict(pair.split("=") for pair in row["shape"].split())["tokens"])
            place = names.index(f"{row['operator']}: {row['impl']} / {row['baseline']}")
            axes.scatter(float(row[column]), place, s=12 * (tokens / 1024) ** 0.7, color="#0072b2", alpha=0.6, lw=0)
        axes.axvline(1, color="0.5", lw=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle("larger points: more tokens", fontsize=9)
    partial = path.with_name(f"{path.stem}.partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)
