"""Linear attention by the Triton kernels: their order, grids and constants, and the registered operator."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn.core_kernels.heads import sum_groups
from attn.core_kernels.replace.linear_attention import kernels
from attn.core_kernels.replace.linear_attention.state import LinearState, check_rates


def weighted_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LinearState,
    *,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, LinearState]:
    """Weighted sums of values, the weights' own sums and the state after the last token; arguments as in `chunked`."""
    total, weights, *after = fused_sums(query, key, value, *state, decay, age, offsets, causal, chunk_size)
    return total, weights, LinearState(*after)


@torch.library.custom_op("attn::linear_attention_triton", mutates_args=())
def fused_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_value: Tensor,
    key_sum: Tensor,
    decay: Tensor | None,
    age: Tensor | None,
    offsets: Tensor | None,
    causal: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums ``[batch, heads, tokens, value_dim]``, the weights' ``[batch, heads, tokens]`` and the two states after."""
    check_rates(decay)
    plan = _Plan.of(query, key, value, decay, age, offsets, chunk_size)
    matrices, vectors, after, after_sum = plan.scan(plan.key, plan.value, None, key_value, key_sum)
    total = key_value.new_empty(*query.shape[:3], value.shape[3])
    weight_total = key_value.new_empty(query.shape[:3])
    seen = (matrices, vectors) if causal else (after, after_sum)
    if total.numel():
        kernels.output_kernel[plan.grid(plan.value_blocks)](
            plan.query, plan.key, plan.value, *seen, total, weight_total, *plan.tables,
            *plan.strides(plan.query, plan.key, plan.value), *plan.sizes, CAUSAL=causal, **plan.constants,
        )  # fmt: skip
    return total, weight_total, after, after_sum


@torch.library.custom_op("attn::linear_attention_triton_backward", mutates_args=())
def fused_sums_backward(
    grad_total: Tensor,
    grad_weights: Tensor,
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
    causal: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and the two states."""
    grad_total, grad_weights = grad_total.contiguous(), grad_weights.contiguous()
    plan = _Plan.of(query, key, value, decay, age, offsets, chunk_size)
    matrices, vectors, *after = plan.scan(plan.key, plan.value, None, key_value, key_sum)
    grad_matrices, grad_vectors, grad_before, grad_before_sum = plan.scan(
        plan.query, grad_total, grad_weights, grad_key_value, grad_key_sum, reverse=True
    )
    seen = (matrices, vectors) if causal else after
    grad_seen = (grad_matrices, grad_vectors) if causal else (grad_before, grad_before_sum)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = (grad_total.new_empty(*query.shape[:3], x.shape[3]) for x in (key, value))
    if grad_total.numel():
        kernels.query_key_bwd_kernel[plan.grid(plan.feature_blocks)](
            plan.query, plan.key, plan.value, grad_total, grad_weights, *seen, *grad_seen, grad_query, grad_key,
            *plan.tables, *plan.strides(plan.query, plan.key, plan.value), *plan.sizes, CAUSAL=causal,
            **plan.constants,
        )  # fmt: skip
        kernels.value_bwd_kernel[plan.grid(plan.value_blocks)](
            plan.query, plan.key, grad_total, grad_seen[0], grad_value,
            *plan.tables, *plan.strides(plan.query, plan.key), *plan.sizes, CAUSAL=causal, **plan.constants,
        )  # fmt: skip
    grad_key, grad_value = (
        sum_groups(grad, x.shape[1]).to(x.dtype) for grad, x in ((grad_key, key), (grad_value, value))
    )
    return grad_query, grad_key, grad_value, grad_before, grad_before_sum


@fused_sums.register_fake
def _(query: Tensor, _: Tensor, value: Tensor, key_value: Tensor, key_sum: Tensor, *__: object) -> tuple[Tensor, ...]:
    total = key_value.new_empty(*query.shape[:3], value.shape[3])
    return total, key_value.new_empty(query.shape[:3]), *map(_contiguous_like, (key_value, key_sum))


@fused_sums_backward.register_fake
def _(_: Tensor, __: Tensor, ___: Tensor, ____: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(_contiguous_like, tensors[:5]))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.causal, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, *grads):  # type: ignore[no-untyped-def]
    return *fused_sums_backward(*grads, *ctx.saved_tensors, ctx.causal, ctx.chunk_size), *(None,) * 5


fused_sums.register_autograd(_backward, setup_context=_save)


@dataclass(frozen=True)
class _Plan:
    """What the launches of one call share."""

    query: Tensor
    key: Tensor
    value: Tensor
    bounds: Tensor  # [sequences + 1]: first token of each packed sequence, and the end
    slots: Tensor  # [sequences]: number of each sequence's first chunk; numbers in between may stay unused
    tables: tuple[Tensor, ...]  # rates, ages, and by number of a chunk its first token, its end and its sequence
    sizes: tuple[int, ...]
    constants: dict[str, object]

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor | None,
        age: Tensor | None,
        offsets: Tensor | None,
        chunk_size: int,
    ) -> "_Plan":
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        (_, heads, tokens, features), value_dim, device = query.shape, value.shape[3], query.device
        chunk = min(max(triton.next_power_of_2(chunk_size), 16), 64)
        if offsets is None:
            bounds, total_slots = torch.tensor([0, tokens], dtype=torch.int32, device=device), -(-tokens // chunk)
        else:
            bounds, total_slots = offsets.to(torch.int32), tokens // chunk + offsets.shape[0] - 1
        sequences = bounds.shape[0] - 1
        slots = bounds[:-1] // chunk + torch.arange(sequences, dtype=torch.int32, device=device)
        number = torch.arange(total_slots, dtype=torch.int32, device=device)
        # Empty sequences share their number with the next one only if that begins at a later chunk: none is lost.
        of_slot = torch.searchsorted(slots, number, right=True) - 1
        starts = bounds[of_slot] + (number - slots[of_slot]) * chunk
        stops = torch.minimum(starts + chunk, bounds[of_slot + 1])
        # Triton's interpreter multiplies the bits of bfloat16 as integers: there products are taken in float32.
        low = query.dtype == value.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret
        halves = query.dtype != torch.float32 and value.dtype != torch.float32
        unused = bounds
        return cls(
            query,
            key,
            value,
            bounds,
            slots,
            (
                unused if decay is None else decay.float(),
                unused if age is None else age.to(torch.int32).contiguous(),
                starts.to(torch.int32),
                stops.to(torch.int32),
                of_slot.to(torch.int32),
            ),
            (tokens, features, value_dim, heads, heads // key.shape[1], sequences, total_slots),
            {
                "CHUNK": chunk,
                "BLOCK_F": min(max(triton.next_power_of_2(features), 16), 64),
                "BLOCK_V": min(max(triton.next_power_of_2(value_dim), 16), 64),
                "HAS_DECAY": decay is not None,
                "HAS_AGE": age is not None,
                "DOT": tl.bfloat16 if low else tl.float32,
                "PRECISION": "tf32" if halves else "tf32x3",
            },
        )

    @property
    def feature_blocks(self) -> int:
        return triton.cdiv(self.query.shape[3], self.constants["BLOCK_F"])

    @property
    def value_blocks(self) -> int:
        return triton.cdiv(self.value.shape[3], self.constants["BLOCK_V"])

    def grid(self, blocks: int) -> tuple[int, int, int]:
        return blocks, self.sizes[-1], self.query.shape[0] * self.query.shape[1]

    @staticmethod
    def strides(*tensors: Tensor) -> tuple[int, ...]:
        return tuple(stride for x in tensors for stride in x.stride()[:3])

    def scan(
        self,
        left: Tensor,
        right: Tensor,
        column: Tensor | None,
        matrix: Tensor,
        vector: Tensor,
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Matrices and vectors at all chunks, and both after the last (before the first in reverse)."""
        tokens, features, value_dim, heads, groups, sequences, total_slots = self.sizes
        rows = self.query.shape[0] * heads
        matrices = matrix.new_empty(rows, total_slots, features, value_dim)
        vectors = matrix.new_empty(rows, total_slots, features)
        end_matrix, end_vector = _contiguous_like(matrix), _contiguous_like(vector)
        if rows:
            kernels.scan_kernel[(self.feature_blocks, self.value_blocks, rows * sequences)](
                left, right, self.bounds if column is None else column, matrix.contiguous(), vector.contiguous(),
                matrices, vectors, end_matrix, end_vector,
                *self.tables[:2], self.bounds, self.slots, *self.strides(left, right),
                tokens, features, value_dim, heads, 1 if reverse else groups, sequences, total_slots,
                HAS_COLUMN=column is not None, REVERSE=reverse, **self.constants,
            )  # fmt: skip
        return matrices, vectors, end_matrix, end_vector


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
