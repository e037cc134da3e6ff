"""Triton kernels of linear attention: the states of all chunks by a scan, then every chunk on its own.

A chunk's rows see the past through the state before it. Once the states are stored, outputs and gradients of all chunks
are computed side by side. They take ``features * value_dim / chunk`` numbers per token and head, so memory grows with
tokens alone. The backward makes the states again and scans their gradients from the end.

Products are taken in bfloat16 for bfloat16 arguments, where the states are stored so too, and in float32 otherwise: as
three TF32 products for float32, as one where only half precision came in, which TF32 holds exactly without float16's
narrow range. Sums are float32.

Arguments that the kernels share: ``spans`` has first token, end and number of the first chunk of every sequence,
``chunks`` first token, end and sequence of every chunk, both only if ``PACKED``. ``inverse`` is one over a row's
denominator and ``slope`` the gradient of its logarithm, both only if ``NORMALIZE``.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(pointer, rows, row_stride, columns, row_valid, width):
    """Load ``[rows, columns]``, zero outside."""
    inside = row_valid[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _put(pointer, tile, rows, row_stride, columns, row_valid, width):
    inside = row_valid[:, None] & (columns < width)[None, :]
    tl.store(pointer + rows.to(tl.int64)[:, None] * row_stride + columns[None, :], tile, mask=inside)


@triton.jit
def _product(left, right, sums, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """``sums + left @ right``."""
    return tl.dot(left.to(DOT), right.to(DOT), sums, input_precision=PRECISION)


@triton.jit
def _chunk(chunks, slot, tokens, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """First token, end and sequence of a chunk; nothing lies between the first two of a number that is not used."""
    if PACKED:
        return tl.load(chunks + 3 * slot), tl.load(chunks + 3 * slot + 1), tl.load(chunks + 3 * slot + 2)
    return slot * CHUNK, tl.minimum(slot * CHUNK + CHUNK, tokens), slot * 0


@triton.jit
def _place(row, heads, sequences, total_slots, slot, sequence, CAUSAL: tl.constexpr):
    """Where a chunk's state lies: its own when causal, else the one of its whole sequence."""
    if CAUSAL:
        return row * total_slots + slot
    return (row // heads * sequences + sequence) * heads + row % heads


@triton.jit
def _ages(age_ptr, start, stop, CHUNK: tl.constexpr, HAS_AGE: tl.constexpr):
    """How many visible tokens of the chunk there are up to each, and in all; tokens outside count as the last."""
    token = start + tl.arange(0, CHUNK)
    if HAS_AGE:
        before = tl.load(age_ptr + start - 1, mask=start > 0, other=0)
        last = tl.load(age_ptr + stop - 1) - before
        age = tl.load(age_ptr + token, mask=token < stop, other=0) - before
    else:
        last = stop - start
        age = token - start + 1
    return tl.where(token < stop, age, last).to(tl.float32), last.to(tl.float32)


@triton.jit
def _rate(decay, head, HAS_DECAY: tl.constexpr):
    """Powers of two by which a weight falls per token."""
    if HAS_DECAY:
        return tl.load(decay + head).to(tl.float32) * LOG2_E
    return 0.0


@triton.jit
def _within(weights, token, rate, ages, HAS_DECAY: tl.constexpr):
    """Weights of the keys that a row of the same chunk sees, faded."""
    if HAS_DECAY:
        weights *= tl.exp2(-rate * tl.maximum(ages[:, None] - ages[None, :], 0.0))
    return tl.where(token[:, None] >= token[None, :], weights, 0.0)


@triton.jit
def scan_kernel(
    left, right, inverse, slope, start_matrix, start_vector, matrices, vectors, end_matrix, end_vector,
    decay, age, spans,
    left_batch, left_head, left_token, right_batch, right_head, right_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, PACKED: tl.constexpr,
    NORMALIZE: tl.constexpr, REVERSE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the state before each chunk, and at last the one after all; in reverse, the gradient of the state after."""
    blocks_v, blocks_f = tl.cdiv(value_dim, BLOCK_V), tl.cdiv(features, BLOCK_F)
    number = tl.program_id(0)
    v = number % blocks_v * BLOCK_V + tl.arange(0, BLOCK_V)
    f = number // blocks_v % blocks_f * BLOCK_F + tl.arange(0, BLOCK_F)
    first_column = number % blocks_v == 0
    row = (number // blocks_v // blocks_f).to(tl.int64)
    head = row % heads
    sequence = row // heads % sequences
    batch = row // heads // sequences
    if PACKED:
        begin, end = tl.load(spans + 3 * sequence), tl.load(spans + 3 * sequence + 1)
        first_slot = tl.load(spans + 3 * sequence + 2)
    else:
        begin, end, first_slot = 0, tokens, 0
    steps = tl.cdiv(end - begin, CHUNK)
    left += batch * left_batch + head // groups * left_head
    right += batch * right_batch + head // groups * right_head
    by_row = (batch * heads + head) * tokens
    age += batch * tokens
    rate = _rate(decay, head, HAS_DECAY)
    valid_f = f < features
    matrix = _tile(start_matrix + row * features * value_dim, f, value_dim, v, valid_f, value_dim).to(tl.float32)
    vector = tl.load(start_vector + row * features + f, mask=valid_f, other=0.0).to(tl.float32)
    for step in range(steps):
        index = steps - 1 - step if REVERSE else step
        place = (batch * heads + head) * total_slots + first_slot + index
        _put(matrices + place * features * value_dim, matrix, f, value_dim, v, valid_f, value_dim)
        if first_column:
            tl.store(vectors + place * features + f, vector, mask=valid_f)
        start = begin + index * CHUNK
        stop = tl.minimum(start + CHUNK, end)
        token = start + tl.arange(0, CHUNK)
        valid = token < stop
        rows = _tile(left, token, left_token, f, valid, features).to(tl.float32)
        if HAS_DECAY:
            ages, last = _ages(age, start, stop, CHUNK, HAS_AGE)
            rows *= tl.exp2(-rate * (ages if REVERSE else last - ages))[:, None]
            kept = tl.exp2(-rate * last)
            matrix *= kept
            vector *= kept
        if REVERSE:
            if NORMALIZE:
                rows *= tl.load(inverse + by_row + token, mask=valid, other=0.0)[:, None]
                vector += tl.sum(rows * tl.load(slope + by_row + token, mask=valid, other=0.0)[:, None], axis=0)
        else:
            vector += tl.sum(rows, axis=0)
        values = _tile(right, token, right_token, v, valid, value_dim)
        matrix = _product(tl.trans(rows), values, matrix, DOT, PRECISION)
    _put(end_matrix + row * features * value_dim, matrix, f, value_dim, v, valid_f, value_dim)
    if first_column:
        tl.store(end_vector + row * features + f, vector, mask=valid_f)


@triton.jit
def output_kernel(
    query, key, value, matrices, vectors, out, denominators,
    decay, age, chunks,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots, eps,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, PACKED: tl.constexpr,
    NORMALIZE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weighted sums of one chunk's rows, divided by the sums of their weights if ``NORMALIZE``."""
    blocks = tl.cdiv(value_dim, BLOCK_V)
    number = tl.program_id(0)
    v = number % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    slot = number // blocks % total_slots
    row = (number // blocks // total_slots).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop, sequence = _chunk(chunks, slot, tokens, CHUNK, PACKED)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, sequence, CAUSAL)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // groups * key_head
    value += batch * value_batch + head // groups * value_head
    token = start + tl.arange(0, CHUNK)
    valid = token < stop
    sums = tl.zeros([CHUNK, BLOCK_V], tl.float32)
    weight_sums = tl.zeros([CHUNK], tl.float32)
    weights = tl.zeros([CHUNK, CHUNK], tl.float32)
    for offset in range(0, features, BLOCK_F):
        f = offset + tl.arange(0, BLOCK_F)
        q = _tile(query, token, query_token, f, valid, features)
        matrix = _tile(matrices + place * features * value_dim, f, value_dim, v, f < features, value_dim)
        sums = _product(q, matrix, sums, DOT, PRECISION)
        if NORMALIZE:
            vector = tl.load(vectors + place * features + f, mask=f < features, other=0.0)
            weight_sums += tl.sum(q.to(tl.float32) * vector[None, :], axis=1)
        if CAUSAL:
            k = _tile(key, token, key_token, f, valid, features)
            weights = _product(q, tl.trans(k), weights, DOT, PRECISION)
    if CAUSAL:
        rate = _rate(decay, head, HAS_DECAY)
        ages, _ = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
        if HAS_DECAY:
            from_past = tl.exp2(-rate * ages)
            sums *= from_past[:, None]
            weight_sums *= from_past
        weights = _within(weights, token, rate, ages, HAS_DECAY)
        weight_sums += tl.sum(weights, axis=1)
        sums = _product(weights, _tile(value, token, value_token, v, valid, value_dim), sums, DOT, PRECISION)
    if NORMALIZE:
        weight_sums += eps
        sums /= weight_sums[:, None]
        if number % blocks == 0:
            tl.store(denominators + row * tokens + token, weight_sums, mask=valid)
    _put(out + row * tokens * value_dim, sums, token, value_dim, v, valid, value_dim)


@triton.jit
def denominator_bwd_kernel(
    grad_out, out, denominators, inverse, slope,
    grad_out_batch, grad_out_head, grad_out_token,
    tokens, value_dim, heads,
    CHUNK: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One over each denominator, and the gradient of the denominator's logarithm."""
    slots = tl.cdiv(tokens, CHUNK)
    number = tl.program_id(0)
    token = number % slots * CHUNK + tl.arange(0, CHUNK)
    row = (number // slots).to(tl.int64)
    valid = token < tokens
    grad_out += row // heads * grad_out_batch + row % heads * grad_out_head
    out += row * tokens * value_dim
    sums = tl.zeros([CHUNK], tl.float32)
    for offset in range(0, value_dim, BLOCK_V):
        v = offset + tl.arange(0, BLOCK_V)
        grad = _tile(grad_out, token, grad_out_token, v, valid, value_dim).to(tl.float32)
        sums += tl.sum(grad * _tile(out, token, value_dim, v, valid, value_dim).to(tl.float32), axis=1)
    tl.store(slope + row * tokens + token, -sums, mask=valid)
    denominator = tl.load(denominators + row * tokens + token, mask=valid, other=1.0)
    tl.store(inverse + row * tokens + token, 1.0 / denominator, mask=valid)


@triton.jit
def query_key_bwd_kernel(
    query, key, value, grad_out, inverse, slope, matrices, vectors, grad_matrices, grad_vectors, grad_query, grad_key,
    decay, age, chunks,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    grad_out_batch, grad_out_head, grad_out_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, PACKED: tl.constexpr,
    NORMALIZE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk's queries and keys, the latter per query head."""
    blocks = tl.cdiv(features, BLOCK_F)
    number = tl.program_id(0)
    f = number % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    slot = number // blocks % total_slots
    row = (number // blocks // total_slots).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop, sequence = _chunk(chunks, slot, tokens, CHUNK, PACKED)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, sequence, CAUSAL)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // groups * key_head
    value += batch * value_batch + head // groups * value_head
    grad_out += batch * grad_out_batch + head * grad_out_head
    token = start + tl.arange(0, CHUNK)
    valid = token < stop
    valid_f = f < features
    dq = tl.zeros([CHUNK, BLOCK_F], tl.float32)
    dk = tl.zeros([CHUNK, BLOCK_F], tl.float32)
    dw = tl.zeros([CHUNK, CHUNK], tl.float32)
    for offset in range(0, value_dim, BLOCK_V):
        v = offset + tl.arange(0, BLOCK_V)
        grad = _tile(grad_out, token, grad_out_token, v, valid, value_dim)
        values = _tile(value, token, value_token, v, valid, value_dim)
        matrix = _tile(matrices + place * features * value_dim, f, value_dim, v, valid_f, value_dim)
        future = _tile(grad_matrices + place * features * value_dim, f, value_dim, v, valid_f, value_dim)
        dq = _product(grad, tl.trans(matrix), dq, DOT, PRECISION)
        dk = _product(values, tl.trans(future), dk, DOT, PRECISION)
        if CAUSAL:
            dw = _product(grad, tl.trans(values), dw, DOT, PRECISION)
    if NORMALIZE:
        row_slope = tl.load(slope + row * tokens + token, mask=valid, other=0.0)[:, None]
        row_inverse = tl.load(inverse + row * tokens + token, mask=valid, other=0.0)[:, None]
        dq += row_slope * tl.load(vectors + place * features + f, mask=valid_f, other=0.0)[None, :]
        dq *= row_inverse
    dk += tl.load(grad_vectors + place * features + f, mask=valid_f, other=0.0)[None, :]
    if CAUSAL:
        if NORMALIZE:
            dw = (dw + row_slope) * row_inverse
        rate = _rate(decay, head, HAS_DECAY)
        ages, last = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
        if HAS_DECAY:
            dq *= tl.exp2(-rate * ages)[:, None]
            dk *= tl.exp2(-rate * (last - ages))[:, None]
        dw = _within(dw, token, rate, ages, HAS_DECAY).to(DOT)
        dq = _product(dw, _tile(key, token, key_token, f, valid, features), dq, DOT, PRECISION)
        dk = _product(tl.trans(dw), _tile(query, token, query_token, f, valid, features), dk, DOT, PRECISION)
    _put(grad_query + row * tokens * features, dq, token, features, f, valid, features)
    _put(grad_key + row * tokens * features, dk, token, features, f, valid, features)


@triton.jit
def value_bwd_kernel(
    query, key, grad_out, inverse, grad_matrices, grad_value,
    decay, age, chunks,
    query_batch, query_head, query_token, key_batch, key_head, key_token, grad_out_batch, grad_out_head, grad_out_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, PACKED: tl.constexpr,
    NORMALIZE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one chunk's values, per query head."""
    blocks = tl.cdiv(value_dim, BLOCK_V)
    number = tl.program_id(0)
    v = number % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    slot = number // blocks % total_slots
    row = (number // blocks // total_slots).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop, sequence = _chunk(chunks, slot, tokens, CHUNK, PACKED)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, sequence, CAUSAL)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // groups * key_head
    grad_out += batch * grad_out_batch + head * grad_out_head
    token = start + tl.arange(0, CHUNK)
    valid = token < stop
    dv = tl.zeros([CHUNK, BLOCK_V], tl.float32)
    weights = tl.zeros([CHUNK, CHUNK], tl.float32)
    for offset in range(0, features, BLOCK_F):
        f = offset + tl.arange(0, BLOCK_F)
        k = _tile(key, token, key_token, f, valid, features)
        future = _tile(grad_matrices + place * features * value_dim, f, value_dim, v, f < features, value_dim)
        dv = _product(k, future, dv, DOT, PRECISION)
        if CAUSAL:
            q = _tile(query, token, query_token, f, valid, features)
            weights = _product(q, tl.trans(k), weights, DOT, PRECISION)
    if CAUSAL:
        if NORMALIZE:
            weights *= tl.load(inverse + row * tokens + token, mask=valid, other=0.0)[:, None]
        rate = _rate(decay, head, HAS_DECAY)
        ages, last = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
        if HAS_DECAY:
            dv *= tl.exp2(-rate * (last - ages))[:, None]
        weights = _within(weights, token, rate, ages, HAS_DECAY)
        grad = _tile(grad_out, token, grad_out_token, v, valid, value_dim)
        dv = _product(tl.trans(weights), grad, dv, DOT, PRECISION)
    _put(grad_value + row * tokens * value_dim, dv, token, value_dim, v, valid, value_dim)
