"""Linear attention by the Triton kernels: their order, grids and constants, and the registered operator."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn.core_kernels.heads import sum_groups
from attn.core_kernels.replace.linear_attention import kernels
from attn.core_kernels.replace.linear_attention.state import LinearState, check_offsets, check_rates


@dataclass(frozen=True)
class Tuning:
    """Largest tiles and launch options of one kernel in one precision."""

    block_f: int
    block_v: int
    num_warps: int
    num_stages: int


CHUNK = 64
# No entry spills on sm_80, sm_90 or sm_100, which benchmarks/compile_table.py checks; times were not measured yet.
TUNING = {
    ("scan_kernel", "bfloat16"): Tuning(64, 32, 4, 2),
    ("scan_kernel", "float16"): Tuning(64, 32, 4, 2),
    ("scan_kernel", "float32"): Tuning(16, 32, 4, 2),
    ("output_kernel", "bfloat16"): Tuning(64, 64, 4, 2),
    ("output_kernel", "float16"): Tuning(64, 64, 4, 2),
    ("output_kernel", "float32"): Tuning(32, 32, 8, 2),
    ("query_key_bwd_kernel", "bfloat16"): Tuning(32, 32, 4, 2),
    ("query_key_bwd_kernel", "float16"): Tuning(32, 32, 4, 1),
    ("query_key_bwd_kernel", "float32"): Tuning(16, 16, 4, 1),
    ("value_bwd_kernel", "bfloat16"): Tuning(64, 64, 4, 2),
    ("value_bwd_kernel", "float16"): Tuning(64, 64, 4, 2),
    ("value_bwd_kernel", "float32"): Tuning(32, 32, 8, 2),
}


def launch_options(
    kernel: str, dtype: torch.dtype, features: int, value_dim: int, *, rocm: bool = False
) -> dict[str, object]:
    """Tiles, format of products and launch options of a kernel.

    Args:
        kernel: the kernel's name.
        dtype: what the arguments' dtypes promote to, float16 for float16 with bfloat16.
        features: width of queries and keys.
        value_dim: width of values.
        rocm: whether the chip is AMD's, whose tensor cores multiply float32 as it is.
    """
    name = str(dtype).removeprefix("torch.")
    tuning = TUNING[kernel, name]
    return {
        "BLOCK_F": min(max(triton.next_power_of_2(features), 16), tuning.block_f),
        "BLOCK_V": min(max(triton.next_power_of_2(value_dim), 16), tuning.block_v),
        "DOT": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "PRECISION": "ieee" if rocm else "tf32x3" if dtype == torch.float32 else "tf32",
        "num_warps": tuning.num_warps,
        "num_stages": tuning.num_stages,
        "enable_fp_fusion": True,
    }


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState,
    *,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, LinearState]:
    """The output and the state after the last token; arguments as in `reference`."""
    out, _, *after = fused(query, key, value, *state, decay, age, offsets, causal, normalize, eps, chunk_size)
    return out, LinearState(*after)


@torch.library.custom_op("attn::linear_attention_triton", mutates_args=())
def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_value: Tensor,
    key_sum: Tensor,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output ``[batch, heads, tokens, value_dim]``, denominators ``[batch, heads, tokens]`` and the two states after.

    Without ``normalize`` there are no denominators, and their tensor has no elements.
    """
    check_rates(decay)
    check_offsets(offsets, query.shape[2])
    plan = _Plan.of(query, key, value, decay, age, offsets, normalize, chunk_size)
    matrices, vectors, end_matrix, end_vector = plan.scan(plan.key, plan.value, key_value, key_sum)
    after = end_matrix, end_vector
    out, denominators = _new_output(query, value, normalize)
    plan.launch(
        kernels.output_kernel, plan.all_chunks, plan.query, plan.key, plan.value,
        *((matrices, vectors) if causal else after), out, denominators, *plan.faders, plan.chunks,
        *_strides(plan.query, plan.key, plan.value), *plan.sizes, eps, axis="BLOCK_V", CAUSAL=causal,
    )  # fmt: skip
    return out, denominators, end_matrix, end_vector


@torch.library.custom_op("attn::linear_attention_triton_backward", mutates_args=())
def fused_backward(
    grad_out: Tensor,
    grad_key_value: Tensor,
    grad_key_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_value: Tensor,
    key_sum: Tensor,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    out: Tensor,
    denominators: Tensor,
    causal: bool,
    normalize: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and the two states."""
    plan = _Plan.of(query, key, value, decay, age, offsets, normalize, chunk_size)
    (grad_out,) = _with_rows(grad_out)
    inverse, slope = (torch.empty_like(denominators) for _ in range(2))
    if denominators.numel():
        tokens, _, value_dim, heads = plan.sizes[:4]
        with torch.cuda.device_of(query):
            kernels.denominator_bwd_kernel[(triton.cdiv(tokens, plan.chunk) * query.shape[0] * heads,)](
                grad_out, out, denominators, inverse, slope, *_strides(grad_out), tokens, value_dim, heads,
                CHUNK=plan.chunk, BLOCK_V=64, enable_fp_fusion=True,
            )  # fmt: skip
    matrices, vectors, *after = plan.scan(plan.key, plan.value, key_value, key_sum)
    grad_matrices, grad_vectors, grad_matrix, grad_vector = plan.scan(
        plan.query, grad_out, grad_key_value, grad_key_sum, inverse=inverse, slope=slope
    )
    seen = (matrices, vectors) if causal else after
    grad_seen = (grad_matrices, grad_vectors) if causal else (grad_matrix, grad_vector)
    grad_query = _contiguous_like(query)
    # Query heads of a group are summed afterwards, in float32.
    precision = None if key.shape[1] == query.shape[1] else torch.float32
    grad_key, grad_value = (x.new_empty(*query.shape[:3], x.shape[3], dtype=precision or x.dtype) for x in (key, value))
    plan.launch(
        kernels.query_key_bwd_kernel, plan.all_chunks, plan.query, plan.key, plan.value, grad_out,
        inverse, slope, *seen, *grad_seen, grad_query, grad_key, *plan.faders, plan.chunks,
        *_strides(plan.query, plan.key, plan.value, grad_out), *plan.sizes, axis="BLOCK_F", CAUSAL=causal,
    )  # fmt: skip
    plan.launch(
        kernels.value_bwd_kernel, plan.all_chunks, plan.query, plan.key, grad_out, inverse, grad_seen[0], grad_value,
        *plan.faders, plan.chunks, *_strides(plan.query, plan.key, grad_out), *plan.sizes,
        axis="BLOCK_V", CAUSAL=causal,
    )  # fmt: skip
    grad_key, grad_value = (
        sum_groups(grad, x.shape[1]).to(x.dtype) for grad, x in ((grad_key, key), (grad_value, value))
    )
    return grad_query, grad_key, grad_value, grad_matrix, grad_vector


@fused.register_fake
def _(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,
    key_value: Tensor,
    key_sum: Tensor,
    decay: Tensor | None,  # noqa: ARG001
    age: Tensor | None,  # noqa: ARG001
    offsets: Tensor | None,  # noqa: ARG001
    causal: bool,  # noqa: ARG001
    normalize: bool,
    *_: object,
) -> tuple[Tensor, ...]:
    return *_new_output(query, value, normalize), _contiguous_like(key_value), _contiguous_like(key_sum)


@fused_backward.register_fake
def _(_: Tensor, __: Tensor, ___: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(_contiguous_like, tensors[:5]))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.causal, ctx.normalize, _, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors, *output[:2])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_out, _, *grad_after):  # type: ignore[no-untyped-def]
    options = ctx.causal, ctx.normalize, ctx.chunk_size
    return *fused_backward(grad_out, *grad_after, *ctx.saved_tensors, *options), *(None,) * 7


fused.register_autograd(_backward, setup_context=_save)


@dataclass(frozen=True)
class _Plan:
    """What the launches of one call share."""

    query: Tensor
    key: Tensor
    value: Tensor
    faders: tuple[Tensor, Tensor]  # rates and ages
    spans: Tensor  # [sequences, 3]: first token, end, number of the first chunk; numbers in between may stay unused
    chunks: Tensor  # [total_slots, 3]: first token, end, sequence
    sizes: tuple[int, ...]
    chunk: int
    dtype: torch.dtype
    switches: dict[str, bool]

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor | None,
        age: Tensor | None,
        offsets: Tensor | None,
        normalize: bool,
        chunk_size: int,
    ) -> "_Plan":
        query, key, value = _with_rows(query, key, value)
        (_, heads, tokens, features), value_dim = query.shape, value.shape[3]
        chunk = min(max(triton.next_power_of_2(chunk_size), 16), CHUNK)
        unused = query  # kernels read no pointer that their switches turn off
        if offsets is None:
            spans = chunks = unused
            sequences, total_slots = 1, triton.cdiv(tokens, chunk)
        else:
            spans, chunks = _packed_tables(offsets.to(query.device, torch.int32), tokens, chunk)
            sequences, total_slots = len(spans), len(chunks)
        dtype = torch.promote_types(query.dtype, value.dtype)
        if torch.float32 not in (query.dtype, value.dtype) and dtype == torch.float32:  # float16 with bfloat16
            dtype = torch.float16
        # Triton's interpreter multiplies the bits of bfloat16 as integers: there products are taken in float32.
        if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
            dtype = torch.float16
        return cls(
            query,
            key,
            value,
            (
                unused if decay is None else decay.contiguous(),
                unused if age is None else age.to(torch.int32).contiguous(),
            ),
            spans,
            chunks,
            (tokens, features, value_dim, heads, heads // key.shape[1], sequences, total_slots),
            chunk,
            dtype,
            {
                "HAS_DECAY": decay is not None,
                "HAS_AGE": age is not None,
                "PACKED": offsets is not None,
                "NORMALIZE": normalize,
            },
        )

    def launch(
        self, kernel: triton.runtime.JITFunction, blocks: int, *arguments: object, axis: str, **constants: bool
    ) -> None:
        """Run a kernel on ``blocks`` times the tiles of an axis, ``"BLOCK_F"`` or ``"BLOCK_V"``, or of both."""
        features, value_dim = self.sizes[1:3]
        rocm = torch.version.hip is not None
        options = launch_options(kernel.__name__, self.dtype, features, value_dim, rocm=rocm)
        for name, width in (("BLOCK_F", features), ("BLOCK_V", value_dim)):
            if name in axis:
                blocks *= triton.cdiv(width, options[name])
        if blocks:
            with torch.cuda.device_of(self.query):  # Triton launches on the current device
                kernel[(blocks,)](*arguments, CHUNK=self.chunk, **self.switches, **constants, **options)

    @property
    def all_chunks(self) -> int:
        """Chunks of all heads."""
        return self.query.shape[0] * self.query.shape[1] * self.sizes[-1]

    def scan(
        self,
        left: Tensor,
        right: Tensor,
        matrix: Tensor,
        vector: Tensor,
        *,
        inverse: Tensor | None = None,
        slope: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Matrices and vectors at all chunks and after the last; with ``inverse`` in reverse, to before the first."""
        tokens, features, value_dim, heads, groups, sequences, total_slots = self.sizes
        rows = self.query.shape[0] * heads
        reverse = inverse is not None
        stored = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        matrices = matrix.new_empty(rows, total_slots, features, value_dim, dtype=stored)
        vectors = vector.new_empty(rows, total_slots, features)
        end_matrix, end_vector = _contiguous_like(matrix), _contiguous_like(vector)
        self.launch(
            kernels.scan_kernel, rows * sequences, left, right, *((inverse, slope) if reverse else (vector, vector)),
            matrix.contiguous(), vector.contiguous(), matrices, vectors, end_matrix, end_vector,
            *self.faders, self.spans, *_strides(left, right),
            tokens, features, value_dim, heads, 1 if reverse else groups, sequences, total_slots,
            axis="BLOCK_F BLOCK_V", REVERSE=reverse,
        )  # fmt: skip
        return matrices, vectors, end_matrix, end_vector


def _packed_tables(bounds: Tensor, tokens: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Spans of the sequences and of their chunks."""
    sequence = torch.arange(len(bounds) - 1, dtype=torch.int32, device=bounds.device)
    slots = bounds[:-1] // chunk + sequence
    number = torch.arange(tokens // chunk + len(sequence), dtype=torch.int32, device=bounds.device)
    # Empty sequences share their number with the next one only if that begins at a later chunk: none is lost.
    of_slot = torch.searchsorted(slots, number, right=True, out_int32=True) - 1
    starts = bounds[of_slot] + (number - slots[of_slot]) * chunk
    stops = torch.minimum(starts + chunk, bounds[of_slot + 1])
    return torch.stack([bounds[:-1], bounds[1:], slots], dim=1), torch.stack([starts, stops, of_slot], dim=1)


def _new_output(query: Tensor, value: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Memory for the output and the denominators."""
    out = value.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty(query.shape[:3] if normalize else (0,), dtype=torch.float32)


def _with_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with the elements of a row side by side, copied if they are not."""
    return tuple(x if x.stride(3) == 1 else x.contiguous() for x in tensors)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
