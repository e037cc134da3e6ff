"""One kernel as it is launched, compiled for a chip that need not be here."""

import re
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Of one block, from the table of technical specifications in NVIDIA's CUDA programming guide.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
MATRIX_PRODUCT = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)")
COLUMNS = (
    "kernel", "case", "target", "warps", "stages", "registers", "spilled_bytes", "shared_bytes",
    "tensor_core_instructions", "verdict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Build:
    """One kernel with the types and constants of one launch.

    Args:
        kernel: a ``@triton.jit`` function.
        case: what distinguishes the launch from others of the kernel.
        types: Triton types of run-time arguments by name, e.g. ``"*bf16"``; those that are not named are ``"i32"``.
        constants: values of the compile-time arguments, and of what the launch fixes to one value.
        aligned: the integers that are multiples of 16; pointers always are.
        num_warps: option of the launch.
        num_stages: option of the launch.
        targets: keys of `TARGETS` that the launch is made for.
        tensor_cores: whether the kernel multiplies matrices, which it then must on tensor cores.
    """

    kernel: triton.runtime.JITFunction
    case: str
    types: dict[str, str]
    constants: dict[str, object]
    aligned: Collection[str] = ()
    num_warps: int = 4
    num_stages: int = 3
    targets: Collection[str] = tuple(TARGETS)
    tensor_cores: bool = True


def compile_build(build: Build, target: str) -> dict[str, object]:
    """A row of the table: what ptxas says of the kernel (for AMD only that it compiles) and ``"ok"`` or the faults."""
    signature, attributes = {}, {}
    for position, name in enumerate(build.kernel.arg_names):
        signature[name] = "constexpr" if name in build.constants else build.types.get(name, "i32")
        if signature[name].startswith("*") or name in build.aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(build.kernel, signature, build.constants, attributes),
        target=TARGETS[target],
        options={"num_warps": build.num_warps, "num_stages": build.num_stages, "enable_fp_fusion": True},
    )
    row = dict.fromkeys(COLUMNS, "") | {
        "kernel": build.kernel.__name__,
        "case": build.case,
        "target": target,
        "warps": build.num_warps,
        "stages": build.num_stages,
        "shared_bytes": compiled.metadata.shared,
    }
    if target in SHARED_BYTES:
        row |= resource_usage(compiled.asm["cubin"])
        row["tensor_core_instructions"] = len(MATRIX_PRODUCT.findall(compiled.asm["ptx"]))
    return row | {"verdict": "; ".join(faults(row, tensor_cores=build.tensor_cores)) or "ok"}


def faults(row: dict[str, object], *, tensor_cores: bool) -> list[str]:
    """What a row says that must not be, in words."""
    found = []
    if row["spilled_bytes"]:
        found.append(f"spills {row['spilled_bytes']} bytes")
    limit = SHARED_BYTES.get(str(row["target"]))
    if limit is not None and int(str(row["shared_bytes"])) > limit:
        found.append(f"needs {row['shared_bytes']} of {limit} bytes of shared memory")
    if tensor_cores and row["tensor_core_instructions"] == 0:
        found.append("does not use tensor cores")
    return found


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": numbers["REG"], "spilled_bytes": numbers["STACK"] + numbers["LOCAL"]}
