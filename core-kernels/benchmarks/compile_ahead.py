"""Compiles every Triton kernel for GPUs that need not be here, and tabulates what ptxas says of the result.

``python core-kernels/benchmarks/compile_ahead.py [OUTPUT.csv]`` fails if a kernel spills registers, needs more shared
memory than the chip has, or multiplies matrices without tensor cores.
"""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attn.core_kernels.replace.linear_attention import kernels as linear_attention

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # per block, CUDA programming guide, table of features
COLUMNS = ["kernel", "case", "arch", "registers", "spilled_bytes", "shared_bytes", "tensor_core_instructions"]


@dataclass(frozen=True, kw_only=True)
class Build:
    """One kernel with the types of its arguments and its compile-time constants.

    Args:
        case: what distinguishes it from other builds of the kernel.
        types: of the run-time arguments by name; the rest are ``i32``.
        constants: values of the compile-time arguments.
    """

    kernel: triton.runtime.JITFunction
    case: str
    types: dict[str, str]
    constants: dict[str, object]


def linear_attention_builds() -> Iterator[Build]:
    """Linear attention as `launch` calls it: both precisions, with and without decay, ages and causality."""
    rows = ("left", "right", "query", "key", "value")
    for kind, dot, precision in (
        ("bf16", tl.bfloat16, "tf32"),
        ("fp16", tl.float32, "tf32"),
        ("fp32", tl.float32, "tf32x3"),
    ):
        for width in (64, 32):
            for decay in (False, True):
                constants = {
                    "CHUNK": 64,
                    "BLOCK_F": width,
                    "BLOCK_V": width,
                    "HAS_DECAY": decay,
                    "HAS_AGE": decay,
                    "DOT": dot,
                    "PRECISION": precision,
                }
                case = f"{kind} width {width}{' decay' if decay else ''}"
                integers = dict.fromkeys(
                    ("age", "bounds", "slots", "chunk_starts", "chunk_stops", "chunk_sequences"), "*i32"
                )
                for kernel in (
                    linear_attention.output_kernel,
                    linear_attention.query_key_bwd_kernel,
                    linear_attention.value_bwd_kernel,
                ):
                    types = dict.fromkeys((*rows, "grad_query"), f"*{kind}") | integers
                    for causal in (True, False) if not decay else (True,):
                        name = f"{case}{'' if causal else ' bidirectional'}"
                        yield Build(kernel=kernel, case=name, types=types, constants=constants | {"CAUSAL": causal})
                for reverse in (False, True):
                    types = {"left": f"*{kind}", "right": "*fp32" if reverse else f"*{kind}"} | integers
                    yield Build(
                        kernel=linear_attention.scan_kernel,
                        case=f"{case}{' reverse' if reverse else ''}",
                        types=types,
                        constants=constants | {"HAS_COLUMN": reverse, "REVERSE": reverse},
                    )


def build(plan: Build, arch: int) -> dict[str, object]:
    """Registers, spills, shared memory and tensor-core instructions of one build for one architecture."""
    names = plan.kernel.arg_names
    signature, aligned = {}, {}
    for position, name in enumerate(names):
        if name in plan.constants:
            signature[name] = "constexpr"
            continue
        signature[name] = plan.types.get(name, "i32" if is_size(name) else "*fp32")
        if signature[name].startswith("*") or is_stride(name):
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(plan.kernel, signature, plan.constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", str(binary)], capture_output=True, text=True, check=True).stdout  # noqa: S603
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "kernel": plan.kernel.__name__,
        "case": plan.case,
        "arch": f"sm_{arch}",
        "registers": numbers["REG"],
        "spilled_bytes": numbers["STACK"] + numbers["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "tensor_core_instructions": len(
            re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", compiled.asm["ptx"])
        ),
    }


def is_size(name: str) -> bool:
    """Whether an argument is a count or a stride."""
    return is_stride(name) or name in {"tokens", "features", "value_dim", "heads", "groups", "sequences", "total_slots"}


def is_stride(name: str) -> bool:
    """Whether an argument is a stride, in elements."""
    return name.endswith(("_batch", "_head", "_token"))


def main() -> None:
    """Compile all, print the table, write it if a path is given, and fail on what must not be."""
    rows, faults = [], []
    for arch, limit in SHARED_BYTES.items():
        for plan in linear_attention_builds():
            row = build(plan, arch)
            rows.append(row)
            sys.stdout.write(" ".join(f"{value}" for value in row.values()) + "\n")
            sys.stdout.flush()
            if row["spilled_bytes"]:
                faults.append(f"{row} spills")
            if row["shared_bytes"] > limit:
                faults.append(f"{row} needs more than {limit} bytes of shared memory")
            if not row["tensor_core_instructions"]:
                faults.append(f"{row} does not use tensor cores")
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
