"""Compiles every Triton kernel for chips that need not be here, and tabulates registers, spills and shared memory.

``python core-kernels/benchmarks/compile_table.py [OUTPUT.csv] [--only FAMILY]`` takes the launches that the modules in
``builds/`` list, each with ``def builds() -> Iterator[Build]``, writes ``results/kernels/compile_table.csv`` unless
told otherwise, and fails if a kernel spills registers, needs more shared memory than the chip has, or multiplies
matrices without tensor cores.
"""

import argparse
import importlib
import sys
from pathlib import Path

from builds.build import COLUMNS, compile_build
from tables import write

FAMILIES = sorted(path.stem for path in (Path(__file__).parent / "builds").glob("*.py") if path.stem != "build")


def main() -> None:
    """Compile all, one line each, write the table, and fail on what must not be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path("results/kernels/compile_table.csv"))
    parser.add_argument("--only", choices=FAMILIES, help="the launches of one family")
    arguments = parser.parse_args()
    plans = [
        (build, target)
        for family in ([arguments.only] if arguments.only else FAMILIES)
        for build in importlib.import_module(f"builds.{family}").builds()
        for target in build.targets
    ]
    rows = []
    for number, (build, target) in enumerate(plans, 1):
        rows.append(compile_build(build, target))
        sys.stdout.write(f"[{number}/{len(plans)}] " + " ".join(str(cell) for cell in rows[-1].values()) + "\n")
        sys.stdout.flush()
    write(arguments.output, COLUMNS, rows)
    bad = [row for row in rows if row["verdict"] != "ok"]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(rows)} builds are not as they must be: their verdicts are above")


if __name__ == "__main__":
    main()
