"""Triton kernels of linear attention: the states of all chunks by a scan, then every chunk on its own.

A chunk's rows see the past through the state before it. Once the states are stored, outputs and gradients of all chunks
are computed side by side. They take ``features * value_dim / chunk`` numbers per token and head, so memory grows with
tokens alone. The backward makes the states again and scans their gradients from the end.

Products are taken in bfloat16 for bfloat16 arguments and in float32 otherwise: as three TF32 products for float32, as
one where only half precision came in, which TF32 holds exactly without float16's narrow range. Sums are float32.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


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
def scan_kernel(
    left, right, column, start_matrix, start_vector, matrices, vectors, end_matrix, end_vector,
    decay, age, bounds, slots,
    left_batch, left_head, left_token, right_batch, right_head, right_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, HAS_COLUMN: tl.constexpr, REVERSE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the state before each chunk, and at last the one after all; in reverse, the gradient of the state after."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    first_column = tl.program_id(1) == 0
    row = tl.program_id(2).to(tl.int64)
    head = row % heads
    sequence = (row // heads) % sequences
    batch = row // heads // sequences
    begin, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    slot = tl.load(slots + sequence)
    chunks = tl.cdiv(end - begin, CHUNK)
    left += batch * left_batch + head // groups * left_head
    right += batch * right_batch + head // groups * right_head
    column += (batch * heads + head) * tokens
    age += batch * tokens
    rate = tl.load(decay + head).to(tl.float32) if HAS_DECAY else 0.0
    valid_f = f < features
    matrix = _tile(start_matrix + row * features * value_dim, f, value_dim, v, valid_f, value_dim).to(tl.float32)
    vector = tl.load(start_vector + row * features + f, mask=valid_f, other=0.0).to(tl.float32)
    for step in range(chunks):
        index = chunks - 1 - step if REVERSE else step
        place = (batch * heads + head) * total_slots + slot + index
        _put(matrices + place * features * value_dim, matrix, f, value_dim, v, valid_f, value_dim)
        if first_column:
            tl.store(vectors + place * features + f, vector, mask=valid_f)
        start = begin + index * CHUNK
        stop = tl.minimum(start + CHUNK, end)
        token = start + tl.arange(0, CHUNK)
        valid = token < stop
        rows = _tile(left, token, left_token, f, valid, features).to(tl.float32)
        values = _tile(right, token, right_token, v, valid, value_dim)
        if HAS_DECAY:
            ages, last = _ages(age, start, stop, CHUNK, HAS_AGE)
            rows *= tl.exp(-rate * (ages if REVERSE else last - ages))[:, None]
            kept = tl.exp(-rate * last)
            matrix *= kept
            vector *= kept
        if HAS_COLUMN:
            vector += tl.sum(rows * tl.load(column + token, mask=valid, other=0.0)[:, None], axis=0)
        else:
            vector += tl.sum(rows, axis=0)
        matrix += tl.dot(tl.trans(rows.to(DOT)), values.to(DOT), input_precision=PRECISION)
    _put(end_matrix + row * features * value_dim, matrix, f, value_dim, v, valid_f, value_dim)
    if first_column:
        tl.store(end_vector + row * features + f, vector, mask=valid_f)


@triton.jit
def _place(row, heads, sequences, total_slots, slot, sequence, CAUSAL: tl.constexpr):
    """Where a chunk's state lies: its own when causal, else the one of its whole sequence."""
    if CAUSAL:
        return row * total_slots + slot
    return (row // heads * sequences + sequence) * heads + row % heads


@triton.jit
def output_kernel(
    query, key, value, matrices, vectors, total, weight_total,
    decay, age, chunk_starts, chunk_stops, chunk_sequences,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weighted sums of one chunk's rows and the sums of their weights."""
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    slot = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop = tl.load(chunk_starts + slot), tl.load(chunk_stops + slot)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, tl.load(chunk_sequences + slot), CAUSAL)
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
        vector = tl.load(vectors + place * features + f, mask=f < features, other=0.0)
        sums += tl.dot(q.to(DOT), matrix.to(DOT), input_precision=PRECISION)
        weight_sums += tl.sum(q.to(tl.float32) * vector[None, :], axis=1)
        if CAUSAL:
            k = _tile(key, token, key_token, f, valid, features)
            weights += tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision=PRECISION)
    if CAUSAL:
        if HAS_DECAY:
            rate = tl.load(decay + head).to(tl.float32)
            ages, _ = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
            from_past = tl.exp(-rate * ages)
            sums *= from_past[:, None]
            weight_sums *= from_past
            weights *= tl.exp(-rate * tl.maximum(ages[:, None] - ages[None, :], 0.0))
        weights = tl.where(token[:, None] >= token[None, :], weights, 0.0)
        weight_sums += tl.sum(weights, axis=1)
        values = _tile(value, token, value_token, v, valid, value_dim)
        sums += tl.dot(weights.to(DOT), values.to(DOT), input_precision=PRECISION)
    _put(total + row * tokens * value_dim, sums, token, value_dim, v, valid, value_dim)
    if tl.program_id(0) == 0:
        tl.store(weight_total + row * tokens + token, weight_sums, mask=valid)


@triton.jit
def query_key_bwd_kernel(
    query, key, value, grad_total, grad_weights, matrices, vectors, grad_matrices, grad_vectors, grad_query, grad_key,
    decay, age, chunk_starts, chunk_stops, chunk_sequences,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk's queries and keys, the latter per query head."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    slot = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop = tl.load(chunk_starts + slot), tl.load(chunk_stops + slot)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, tl.load(chunk_sequences + slot), CAUSAL)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // groups * key_head
    value += batch * value_batch + head // groups * value_head
    grad_total += row * tokens * value_dim
    token = start + tl.arange(0, CHUNK)
    valid = token < stop
    valid_f = f < features
    dq = tl.zeros([CHUNK, BLOCK_F], tl.float32)
    dk = tl.zeros([CHUNK, BLOCK_F], tl.float32)
    dw = tl.zeros([CHUNK, CHUNK], tl.float32)
    for offset in range(0, value_dim, BLOCK_V):
        v = offset + tl.arange(0, BLOCK_V)
        grad = _tile(grad_total, token, value_dim, v, valid, value_dim).to(DOT)
        values = _tile(value, token, value_token, v, valid, value_dim).to(DOT)
        matrix = _tile(matrices + place * features * value_dim, f, value_dim, v, valid_f, value_dim).to(DOT)
        future = _tile(grad_matrices + place * features * value_dim, f, value_dim, v, valid_f, value_dim).to(DOT)
        dq += tl.dot(grad, tl.trans(matrix), input_precision=PRECISION)
        dk += tl.dot(values, tl.trans(future), input_precision=PRECISION)
        if CAUSAL:
            dw += tl.dot(grad, tl.trans(values), input_precision=PRECISION)
    row_grad = tl.load(grad_weights + row * tokens + token, mask=valid, other=0.0)
    dq += row_grad[:, None] * tl.load(vectors + place * features + f, mask=valid_f, other=0.0)[None, :]
    dk += tl.load(grad_vectors + place * features + f, mask=valid_f, other=0.0)[None, :]
    if CAUSAL:
        dw += row_grad[:, None]
        if HAS_DECAY:
            rate = tl.load(decay + head).to(tl.float32)
            ages, last = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
            dq *= tl.exp(-rate * ages)[:, None]
            dk *= tl.exp(-rate * (last - ages))[:, None]
            dw *= tl.exp(-rate * tl.maximum(ages[:, None] - ages[None, :], 0.0))
        dw = tl.where(token[:, None] >= token[None, :], dw, 0.0).to(DOT)
        q = _tile(query, token, query_token, f, valid, features).to(DOT)
        k = _tile(key, token, key_token, f, valid, features).to(DOT)
        dq += tl.dot(dw, k, input_precision=PRECISION)
        dk += tl.dot(tl.trans(dw), q, input_precision=PRECISION)
    _put(grad_query + row * tokens * features, dq, token, features, f, valid, features)
    _put(grad_key + row * tokens * features, dk, token, features, f, valid, features)


@triton.jit
def value_bwd_kernel(
    query, key, grad_total, grad_matrices, grad_value,
    decay, age, chunk_starts, chunk_stops, chunk_sequences,
    query_batch, query_head, query_token, key_batch, key_head, key_token,
    tokens, features, value_dim, heads, groups, sequences, total_slots,
    CHUNK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_AGE: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one chunk's values, per query head."""
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    slot = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    batch, head = row // heads, row % heads
    start, stop = tl.load(chunk_starts + slot), tl.load(chunk_stops + slot)
    if start >= stop:
        return
    place = _place(row, heads, sequences, total_slots, slot, tl.load(chunk_sequences + slot), CAUSAL)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // groups * key_head
    token = start + tl.arange(0, CHUNK)
    valid = token < stop
    dv = tl.zeros([CHUNK, BLOCK_V], tl.float32)
    weights = tl.zeros([CHUNK, CHUNK], tl.float32)
    for offset in range(0, features, BLOCK_F):
        f = offset + tl.arange(0, BLOCK_F)
        k = _tile(key, token, key_token, f, valid, features).to(DOT)
        future = _tile(grad_matrices + place * features * value_dim, f, value_dim, v, f < features, value_dim)
        dv += tl.dot(k, future.to(DOT), input_precision=PRECISION)
        if CAUSAL:
            q = _tile(query, token, query_token, f, valid, features).to(DOT)
            weights += tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAUSAL:
        if HAS_DECAY:
            rate = tl.load(decay + head).to(tl.float32)
            ages, last = _ages(age + batch * tokens, start, stop, CHUNK, HAS_AGE)
            dv *= tl.exp(-rate * (last - ages))[:, None]
            weights *= tl.exp(-rate * tl.maximum(ages[:, None] - ages[None, :], 0.0))
        weights = tl.where(token[:, None] >= token[None, :], weights, 0.0).to(DOT)
        grad = _tile(grad_total + row * tokens * value_dim, token, value_dim, v, valid, value_dim).to(DOT)
        dv += tl.dot(tl.trans(weights), grad, input_precision=PRECISION)
    _put(grad_value + row * tokens * value_dim, dv, token, value_dim, v, valid, value_dim)
