"""Block-sparse attention as `launch` calls it: each kernel, precision and class of widths, with every kind of mask.

The launches are recorded from calls of the registered operators, so that they cannot differ from what runs.
"""

from collections.abc import Collection, Iterator
from unittest import mock

import torch
from builds.build import Build

from attn.core_kernels import BlockLayout
from attn.core_kernels.sparsify import mask_rules
from attn.core_kernels.sparsify.block_sparse import kernels, launch

POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip
WIDTHS = (64, 128, 256)
TOKENS = 256
OPTIONS = ("num_warps", "num_stages")


def builds() -> Iterator[Build]:
    """All entries of the tuning table with order, window, key mask and tiles on sm_80, and a choice on other chips.

    That is bfloat16 on all, float32, which takes the most registers, on sm_100, and one width of both on AMD's.
    """
    for dtype, chips in {
        torch.bfloat16: ("sm_80", "sm_90", "sm_100"),
        torch.float16: ("sm_80",),
        torch.float32: ("sm_80", "sm_100"),
    }.items():
        for width in WIDTHS:
            yield from launches(dtype, width, chips)
    for dtype in (torch.bfloat16, torch.float32):
        yield from launches(dtype, 128, ("gfx942",), rocm=True)


def launches(dtype: torch.dtype, width: int, chips: Collection[str], *, rocm: bool = False) -> Iterator[Build]:
    """The three kernels of one call and its gradient, for the chips of one maker."""
    recorded: list[Build] = []
    case = f"{str(dtype).removeprefix('torch.')} {width}"
    recorders = {
        name: Recorder(getattr(kernels, name), case, chips, recorded)
        for name in ("attention_kernel", "query_bwd_kernel", "key_bwd_kernel")
    }
    with (
        mock.patch.multiple(kernels, **recorders),
        mock.patch.object(torch.version, "hip", "recorded" if rocm else None),
    ):
        call(dtype, width)
    yield from recorded


def call(dtype: torch.dtype, width: int) -> None:
    """The operator and its gradient once; what they return is never written."""
    query, key, value = (torch.zeros(2, heads, TOKENS, width, dtype=dtype) for heads in (8, 2, 2))
    layout = BlockLayout.from_rule(mask_rules.sinks_and_window(4, 70), TOKENS, TOKENS, block_size=128)
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    of_layout = list(layout.tables()), list(layout.block_size), layout.batch, layout.heads
    rule = mask, *of_layout, 0.1, True, 64
    row_sums = torch.zeros(2, 8, TOKENS)
    launch.block_sparse_attention(query, key, value, *rule)
    launch.block_sparse_attention_backward(query, row_sums, query, key, value, query, row_sums, *rule)


class Recorder:
    """Stands in a kernel's place and appends its launches, as Triton would specialise them."""

    def __init__(self, kernel, case: str, targets: Collection[str], into: list[Build]) -> None:  # type: ignore[no-untyped-def]
        self.kernel, self.case, self.targets, self.into = kernel, case, targets, into
        self.__name__ = kernel.__name__

    def __getitem__(self, _grid: tuple[int]) -> "Recorder":
        return self

    def __call__(self, *arguments: object, **constants: object) -> None:
        """Record a launch instead of running it."""
        types, fixed, aligned = {}, dict(constants), []
        for name, argument in zip(self.kernel.arg_names, arguments, strict=False):
            if isinstance(argument, torch.Tensor):
                types[name] = POINTERS[argument.dtype]
            elif isinstance(argument, float):
                types[name] = "fp32"
            elif argument == 1:
                fixed[name] = 1
            elif argument % 16 == 0:  # type: ignore[operator]
                aligned.append(name)
        options = {name: fixed.pop(name) for name in OPTIONS}
        self.into.append(
            Build(
                kernel=self.kernel,
                case=self.case,
                types=types,
                constants=fixed,
                aligned=aligned,
                targets=self.targets,
                **options,  # type: ignore[arg-type]
            )
        )
