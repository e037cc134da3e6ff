"""Measures what it takes to observe and to edit a Llama at long context on a CPU: ``results/long_context.csv``.

``python core-kernels/benchmarks/long_context.py [--tokens 32768]``. Every way runs in a process of its own. Its memory
is the most that the process held at once beyond what it held with model and input in place; a way that needs more than
``LIMIT`` is stopped and says so.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from measure import describe
from transformers import LlamaConfig, LlamaModel

from attn.core_kernels.models import KeyMass, RowEntropy, ScaleKeys, edit, probe

LIMIT = 20 * 2**30
COLUMNS = ["way", "tokens", "peak_bytes", "seconds", "status", "device", "driver", "threads"]
COLUMNS += ["torch", "triton", "commit", "date"]
WAYS = {
    "plain": "the model alone",
    "probe": "probe: key mass and row entropy of all layers",
    "edit": "edit: attention to the first token halved in all layers",
    "output_attentions": "output_attentions=True",
}


def make_model() -> LlamaModel:
    """Llama of two layers, eight heads of 64 and two key heads, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1000,
        max_position_embeddings=2**17,
        use_cache=False,
    )
    return LlamaModel(config).eval()


def around(way: str, model: LlamaModel, tokens: int) -> AbstractContextManager[object]:
    """The context in which the model runs."""
    if way == "probe":
        return probe(model, reads=[KeyMass(), RowEntropy()])
    if way == "edit":
        return edit(model, ScaleKeys((torch.arange(tokens) == 0)[None, None], beta=0.5))
    if way == "output_attentions":
        model.set_attn_implementation("eager")
    return nullcontext()


def run(way: str, tokens: int) -> None:
    """Run one way in this process and print its peak memory and processor time."""
    torch.set_num_threads(1)
    model = make_model()
    ids = torch.randint(1000, (1, tokens))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    before, start = held(), time.process_time()
    try:
        with torch.no_grad(), around(way, model, tokens):
            model(ids, output_attentions=way == "output_attentions")
    except (RuntimeError, MemoryError) as error:
        if "allocate" not in str(error):
            raise
        sys.stdout.write(f"needs more than {LIMIT / 2**30:.0f} GiB,,\n")
        return
    sys.stdout.write(f"ok,{held() - before},{time.process_time() - start:.1f}\n")


def held() -> int:
    """Most bytes that this process has held at once so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run every way, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--way", choices=WAYS, help="run this one in this process and print what it took")
    arguments = parser.parse_args()
    if arguments.way:
        run(arguments.way, arguments.tokens)
        return
    machine = describe(torch.device("cpu")) | {"threads": "1"}
    rows: list[dict[str, object]] = []
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--tokens", str(arguments.tokens)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
        status, peak, seconds = printed.strip().splitlines()[-1].split(",")
        figures = {"way": WAYS[way], "tokens": arguments.tokens, "peak_bytes": peak}
        rows.append(figures | {"seconds": seconds, "status": status} | machine)
        sys.stdout.write(f"{figures}, {seconds} s, {status}\n")
        sys.stdout.flush()
    path = Path(__file__).parent / "results" / "long_context.csv"
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


if __name__ == "__main__":
    main()
