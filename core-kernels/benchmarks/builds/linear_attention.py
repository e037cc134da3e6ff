"""Linear attention as `launch` calls it: each precision, causal with decay, with a mask, packed, and bidirectional."""

from collections.abc import Iterator

import torch
from builds.build import TARGETS, Build

from attn.core_kernels.replace.linear_attention import kernels
from attn.core_kernels.replace.linear_attention.launch import CHUNK, launch_options

KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SWITCHES = {
    "decay": {"HAS_DECAY": True, "NORMALIZE": False, "CAUSAL": True},
    "masked decay, packed": {"HAS_DECAY": True, "HAS_AGE": True, "PACKED": True, "CAUSAL": True},
    "bidirectional": {"CAUSAL": False},
}
SIZES = {"tokens", "heads", "groups", "sequences", "total_slots"}
WIDTHS = {"features", "value_dim"}


def builds() -> Iterator[Build]:
    """The launches of width 128: all switches on in every precision, the other cases in bfloat16."""
    chunk_kernels = kernels.output_kernel, kernels.query_key_bwd_kernel, kernels.value_bwd_kernel
    for dtype in KINDS:
        for kernel in chunk_kernels:
            yield from launches(kernel, dtype, "masked decay, packed")
        yield from launches(kernels.scan_kernel, dtype, "masked decay, packed", REVERSE=True)
    for kernel in chunk_kernels:
        yield from launches(kernel, torch.bfloat16, "decay")
    yield from launches(kernels.scan_kernel, torch.bfloat16, "decay", REVERSE=False)
    yield from launches(kernels.output_kernel, torch.bfloat16, "bidirectional")
    types = dict.fromkeys(("grad_out", "out"), "*bf16") | dict.fromkeys(("denominators", "inverse", "slope"), "*fp32")
    yield Build(
        kernel=kernels.denominator_bwd_kernel,
        case="bf16",
        types=types,
        constants={"CHUNK": CHUNK, "BLOCK_V": 64},
        aligned={"value_dim", "grad_out_batch", "grad_out_head", "grad_out_token"},
        tensor_cores=False,
    )


def launches(kernel, dtype: torch.dtype, case: str, **switches: bool) -> Iterator[Build]:  # type: ignore[no-untyped-def]
    """One launch for the chips of each maker."""
    state = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = dict.fromkeys(("inverse", "slope", "start_matrix", "start_vector", "end_matrix", "end_vector"), "*fp32")
    types |= dict.fromkeys(("vectors", "grad_vectors", "denominators", "decay"), "*fp32")
    types |= dict.fromkeys(("matrices", "grad_matrices"), state)
    types |= dict.fromkeys(("age", "spans", "chunks"), "*i32") | {"eps": "fp32"}
    for rocm in (False, True):
        options = launch_options(kernel.__name__, dtype, 128, 128, rocm=rocm)
        num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
        del options["enable_fp_fusion"]
        given = {"HAS_AGE": False, "HAS_DECAY": False, "PACKED": False, "NORMALIZE": True} | SWITCHES[case] | switches
        constants = {"CHUNK": CHUNK} | options | {k: v for k, v in given.items() if k in kernel.arg_names}
        names = set(kernel.arg_names) - set(constants)
        strides = {name for name in names if name.endswith(("_batch", "_head", "_token"))}
        rows = names - strides - SIZES - WIDTHS - set(types)
        yield Build(
            kernel=kernel,
            case=f"{KINDS[dtype]} {case}{' reverse' if given.get('REVERSE') else ''}",
            types=types | dict.fromkeys(rows, f"*{KINDS[dtype]}"),
            constants=constants,
            aligned=strides | WIDTHS,
            num_warps=num_warps,
            num_stages=num_stages,
            targets=[name for name, target in TARGETS.items() if (target.backend == "hip") == rocm],
        )
