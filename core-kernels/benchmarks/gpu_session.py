"""Tests, tunes and measures the Triton kernels on a GPU within a time limit, and writes what it finds as CSV.

``python core-kernels/benchmarks/gpu_session.py [--minutes 10] [--output results/kernels]`` runs the tests marked
``gpu``; times training with linear attention under other tilings than those of ``launch.TUNING`` for half of the time
left; then measures the operators of ``registry``. Every row is on disk once it is known. ``--dry-run`` runs through
without a GPU: it collects the tests, and tunes and measures small shapes, the former in Triton's interpreter
(``TRITON_INTERPRET=1``).
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import COLUMNS, describe, measure, seconds
from registry import BENCHMARKS
from tables import write
from triton.runtime.errors import OutOfResources

from attn.core_kernels import linear_attention
from attn.core_kernels.replace.linear_attention.launch import TUNING, Tuning

TESTS = Path(__file__).parents[1] / "tests"
TUNING_COLUMNS = (
    "kernel", "dtype", "block_f", "block_v", "num_warps", "num_stages", "median_ms", "ratio_to_current", "status",
    "shape", "device", "torch", "triton", "commit", "date",
)  # fmt: skip
LARGE = {"batch": 2, "heads": 16, "tokens": 8192, "features": 128}
SMALL = {"batch": 1, "heads": 1, "tokens": 20, "features": 16}


def main() -> None:
    """Test, tune, measure; fail if a test does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=Path("results/kernels"))
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    failed = run_tests(collect_only=arguments.dry_run)
    middle = (time.monotonic() + deadline) / 2
    tunings = tuning_rows(SMALL if arguments.dry_run else LARGE, device, most=2 if arguments.dry_run else None)
    keep(arguments.output / f"tuning_{device.type}.csv", TUNING_COLUMNS, tunings, device, until=middle)
    keep(
        arguments.output / f"operators_{device.type}.csv",
        COLUMNS,
        operator_rows(device, small=arguments.dry_run),
        device,
        until=deadline,
    )
    raise SystemExit(failed)


def run_tests(*, collect_only: bool) -> int:
    """Exit status of the tests marked ``gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    return subprocess.run([*command, *["--collect-only"] * collect_only], check=False).returncode  # noqa: S603


def keep(
    path: Path,
    columns: tuple[str, ...] | list[str],
    rows: Iterator[dict[str, object]],
    device: torch.device,
    *,
    until: float,
) -> None:
    """Write the rows as they come, until a time of the monotonic clock."""
    machine, known = describe(device), []
    for row in rows:
        known.append(dict.fromkeys(columns, "") | row | machine)
        write(path, columns, known)
        sys.stdout.write(" ".join(str(known[-1][column]) for column in columns[:13]) + "\n")
        sys.stdout.flush()
        if time.monotonic() > until:
            sys.stdout.write(f"time is up: {path} is not complete\n")
            break


def tuning_rows(shape: dict[str, int], device: torch.device, *, most: int | None) -> Iterator[dict[str, object]]:
    """Training time under every tiling of one kernel, the others as they are; ``most`` per kernel and dtype."""
    tilings = [Tuning(*x) for x in itertools.product((32, 64), (32, 64), (4, 8), (1, 2, 3))]
    for (kernel, dtype), current in list(TUNING.items()):
        if device.type == "cpu" and dtype == "bfloat16":
            continue  # the interpreter takes no products in bfloat16
        run = training_step(shape, getattr(torch, dtype), device)
        base = median_seconds(run, device)
        for tiling in [x for x in tilings if x != current][:most]:
            row = {
                "kernel": kernel,
                "dtype": dtype,
                **vars(tiling),
                "shape": " ".join(f"{k}={v}" for k, v in shape.items()),
            }
            TUNING[kernel, dtype] = tiling
            try:
                time_taken = median_seconds(run, device)
            except OutOfResources as error:
                yield row | {"status": str(error)}
            else:
                ratio = f"{time_taken / base:.3f}"
                yield row | {"status": "ok", "median_ms": f"{1e3 * time_taken:.3f}", "ratio_to_current": ratio}
            finally:
                TUNING[kernel, dtype] = current


def training_step(shape: dict[str, int], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """Forward and backward of causal linear attention with decay."""
    generator = torch.Generator().manual_seed(0)
    size = (shape["batch"], shape["heads"], shape["tokens"], shape["features"])
    leaves = [torch.rand(size, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    decay = torch.linspace(0, 0.1, shape["heads"], device=device)

    def run() -> None:
        out = linear_attention(*leaves, decay=decay, impl="triton")
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def median_seconds(run: Callable[[], None], device: torch.device) -> float:
    """Median of seven, after two that compile and warm up; one on a CPU, where the figure says nothing."""
    if device.type == "cpu":
        return seconds(run, device)
    for _ in range(2):
        run()
    return statistics.median(seconds(run, device) for _ in range(7))


def operator_rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """Rows of `measure` for every operator and shape; of the first operator at 64 tokens if ``small``."""
    for operator, benchmark in list(BENCHMARKS.items())[: 1 if small else None]:
        for shape in [benchmark.shapes[0] | {"tokens": 64}] if small else benchmark.shapes:
            for row in measure(benchmark, shape, device):
                yield {"operator": operator} | row


if __name__ == "__main__":
    main()
