"""Measures the operators of `registry`: one CSV per operator and device, one plot per device, in ``results/``.

``python core-kernels/benchmarks/measure.py [--device cpu] [OPERATOR ...]``. Candidates of a shape are timed in turn,
round by round, so that a disturbance of the machine meets all of them; ratios are between medians of one run. A
candidate that errs more than the tolerance against float64 gets no time.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from registry import BENCHMARKS, Benchmark, Candidate
from tables import write

from attn.core_kernels.counting import peak_memory
from attn.core_kernels.testing import tolerance

ROUNDS = 7
COLUMNS = [
    "operator",
    "impl",
    "pass",
    "shape",
    "dtype",
    "median_ms",
    "p20_ms",
    "p80_ms",
    "peak_bytes",
    "error",
    "ratio_to_baseline",
    "baseline",
    "status",
    "device",
    "driver",
    "threads",
    "torch",
    "triton",
    "commit",
    "date",
]


def main() -> None:
    """Measure the named operators, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operators", nargs="*", default=list(BENCHMARKS), metavar="OPERATOR")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    machine = describe(device)
    for operator in arguments.operators:
        rows = []
        benchmark = BENCHMARKS[operator]
        for shape in benchmark.shapes:
            for row in measure(benchmark, shape, device):
                rows.append(dict.fromkeys(COLUMNS, "") | {"operator": operator} | row | machine)
                sys.stdout.write(" ".join(f"{rows[-1][c]}" for c in COLUMNS[:13]) + "\n")
                sys.stdout.flush()
        write(Path(__file__).parent / "results" / f"{operator}_{device.type}.csv", COLUMNS, rows)
    if importlib.util.find_spec("matplotlib") is None:
        sys.stdout.write("no plot: matplotlib is not installed\n")
        return
    from draw import draw_results

    draw_results(device.type)


def measure(benchmark: Benchmark, shape: dict[str, int], device: torch.device) -> list[dict[str, object]]:
    """One row per candidate, forward and backward together if any input needs a gradient."""
    rows: dict[str, dict[str, object]] = {}
    times: dict[str, list[float]] = {}
    inputs = tuple(x.detach().to(device).requires_grad_(x.requires_grad) for x in benchmark.inputs(**shape))
    for name, candidate in benchmark.candidates.items():
        if candidate.devices and device.type not in candidate.devices:
            continue
        if shape["tokens"] > benchmark.largest.get(name, shape["tokens"]):
            continue
        error = relative_error(candidate, inputs)
        allowed = tolerance(inputs[0].dtype, shape["tokens"])
        rows[name] = {
            "impl": name,
            "pass": "forward+backward" if any(x.requires_grad for x in inputs) else "forward",
            "shape": " ".join(f"{key}={value}" for key, value in shape.items()),
            "dtype": str(inputs[0].dtype).removeprefix("torch."),
            "error": f"{error:.2e}",
            "baseline": benchmark.baseline,
            "status": "ok" if error <= allowed else "wrong",
        }
        if rows[name]["status"] == "ok":
            times[name] = []
            rows[name]["peak_bytes"] = peak(step(candidate, inputs), device)
    for _ in range(ROUNDS):
        for name in times:
            times[name].append(seconds(step(benchmark.candidates[name], inputs), device))
    for name, sample in times.items():
        low, median, high = (1e3 * q for q in quantiles(sample))
        rows[name] |= {"median_ms": f"{median:.1f}", "p20_ms": f"{low:.1f}", "p80_ms": f"{high:.1f}"}
        if benchmark.baseline in times:
            rows[name]["ratio_to_baseline"] = f"{median / 1e3 / statistics.median(times[benchmark.baseline]):.3f}"
    return list(rows.values())


def step(candidate: Candidate, inputs: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """One forward, and backward if any input needs a gradient."""
    leaves = [x for x in inputs if x.requires_grad]

    def run() -> None:
        out = candidate.call(*inputs)
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    return run


def relative_error(candidate: Candidate, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest error of the result against float64, as a share of the largest magnitude."""
    with torch.no_grad():
        exact = candidate.exact(*(x.double() for x in inputs))
        return ((candidate.call(*inputs).double() - exact).abs().max() / exact.abs().max()).item()


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Processor time of one call on the CPU's one thread; wall-clock between empty queues on a GPU."""
    if device.type != "cuda":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(run: Callable[[], None], device: torch.device) -> int:
    """Most bytes held at once beyond the inputs."""
    if device.type != "cuda":
        return peak_memory(run)
    run()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def quantiles(sample: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    fifths = statistics.quantiles(sample, n=5, method="inclusive")
    return fifths[0], statistics.median(sample), fifths[3]


def describe(device: torch.device) -> dict[str, str]:
    """Hardware, versions, commit and date."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)  # noqa: S607
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "driver": str(torch.version.cuda) if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """The processor's model where Linux tells it."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
