"""Linear attention as `launch` calls it: each precision, with and without decay, both directions, odd widths."""

from collections.abc import Iterator

import triton.language as tl
from builds.build import Build

from attn.core_kernels.replace.linear_attention import kernels

TABLES = dict.fromkeys(("age", "bounds", "slots", "chunk_starts", "chunk_stops", "chunk_sequences"), "*i32")
PRECISIONS = {"bf16": (tl.bfloat16, "tf32"), "fp16": (tl.float32, "tf32")}


def builds() -> Iterator[Build]:
    """The launches."""
    for kind, (dot, precision) in PRECISIONS.items():
        for decay in (False, True):
            constants = {
                "CHUNK": 64, "BLOCK_F": 64, "BLOCK_V": 64, "HAS_DECAY": decay, "HAS_AGE": decay,
                "DOT": dot, "PRECISION": precision,
            }  # fmt: skip
            case = f"{kind}{' decay' if decay else ''}"
            rows = dict.fromkeys(("left", "right", "query", "key", "value", "grad_query"), f"*{kind}")
            for kernel in (kernels.output_kernel, kernels.query_key_bwd_kernel, kernels.value_bwd_kernel):
                yield plan(kernel, case, rows, constants | {"CAUSAL": True})
            yield plan(kernels.scan_kernel, case, rows, constants | {"HAS_COLUMN": False, "REVERSE": False})


def plan(kernel, case: str, rows: dict[str, str], constants: dict[str, object]) -> Build:  # type: ignore[no-untyped-def]
    """A build whose remaining arguments are floats where they point, strides and counts else."""
    names = set(kernel.arg_names) - set(constants)
    strides = {name for name in names if name.endswith(("_batch", "_head", "_token"))}
    counts = {"tokens", "features", "value_dim", "heads", "groups", "sequences", "total_slots"}
    types = dict.fromkeys(names - strides - counts, "*fp32") | rows | TABLES
    return Build(
        kernel=kernel, case=case, types=types, constants=constants, aligned=strides | {"features", "value_dim"}
    )
