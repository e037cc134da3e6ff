"""Measures how many scenes of ShapesWorld a second a processor draws: ``results/scenes.csv``.

``python shared-eval/benchmarks/scenes.py``. The time is the processor's, too long rather than too
short on a machine that others use.
"""

import csv
import platform
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from attn.shared_eval.data.shapesworld import FAMILIES, family, render

SIZES = (64, 96)
SCENES, REPEATS = 150, 5
COLUMNS = ["family", "size", "scenes_per_second", "device", "python", "numpy", "pillow", "commit", "date"]


def rate(name: str, size: int) -> float:
    """Scenes per second of the processor's time, drawn from nothing, with picture and masks; median of the repeats."""
    world = family(name)
    rates = []
    for repeat in range(REPEATS + 1):  # the first fills the caches
        start = time.process_time()
        for index in range(repeat * SCENES, (repeat + 1) * SCENES):
            render(world.scene("train", index), size).masks()
        rates.append(SCENES / (time.process_time() - start))
    return statistics.median(rates[1:])


def device() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measures every family at every size."""
    folder = Path(__file__).parent / "results"
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()  # noqa: S603
    common = {
        "device": device(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
    }
    rows = [
        {"family": name, "size": size, "scenes_per_second": round(rate(name, size)), **common}
        for name in FAMILIES
        for size in SIZES
    ]
    temporary = folder / "scenes.csv.part"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(folder / "scenes.csv")


if __name__ == "__main__":
    main()
