"""Triton kernels of block-sparse attention: each program owns some rows, or some keys, and walks over their lists.

Forward and the gradient of the queries take a tile of rows of a query block and walk over the key blocks in its list;
the gradients of keys and values take a tile of keys and walk over the query blocks in the transposed table, for every
query head of the group. So every sum has one owner and one order, and results repeat bit for bit.

Blocks of ``ROWS`` times ``COLUMNS`` pairs are computed in tiles of at most ``BLOCK_M`` times ``BLOCK_N``. Lists
increase, so that bisection finds what order and window leave of them; pairs are looked at one by one only where
``tile_of`` names a tile of the layout, where order, window or an end cuts through, or with ``MASK``, for which
``mask`` has a byte per batch row and key. Logits are in powers of two: ``scale`` holds a factor log2(e). Products of
rows are taken in ``DOT``, those with gradients of the map in ``GRAD_DOT``, and summed in float32; ``PRECISION`` says
how float32 products are taken. ``group`` query heads share a key head, ``layout_group`` of them a list, and
``layout_batch`` is the number of heads that a batch row has in the layout, 0 if all rows share theirs.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _rows(pointer, rows, stride, valid, width, WIDTH: tl.constexpr, first=0):
    """Load ``[rows, WIDTH]`` from column ``first`` on, zero outside."""
    column = first + tl.arange(0, WIDTH)
    inside = valid[:, None] & (column < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _put(pointer, tile, rows, stride, valid, width, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    inside = valid[:, None] & (column < width)[None, :]
    tl.store(pointer + rows.to(tl.int64)[:, None] * stride + column[None, :], tile, mask=inside)


@triton.jit
def _products(
    left, left_at, left_row, left_stride, left_valid, right, right_at, right_row, right_stride, right_valid, width,
    WIDTH: tl.constexpr, SLICE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products ``[left, right]`` of rows; if ``SLICE`` is smaller, read again that many numbers at a time.

    For a factor that stays the same in a loop is kept in registers, where wide rows of float32 do not fit.
    """
    if SLICE < WIDTH:
        products = tl.zeros([left.shape[0], right.shape[0]], tl.float32)
        for first in tl.range(0, WIDTH, SLICE, num_stages=1):
            some = _rows(left_at, left_row, left_stride, left_valid, width, SLICE, first)
            others = _rows(right_at, right_row, right_stride, right_valid, width, SLICE, first)
            products = tl.dot(some.to(DOT), tl.trans(others.to(DOT)), products, input_precision=PRECISION)
    else:
        products = tl.dot(left.to(DOT), tl.trans(right.to(DOT)), input_precision=PRECISION)
    return products


@triton.jit
def _bisect(blocks, start, stop, bound):
    """The first entry from ``start`` on whose block is at least ``bound``, ``stop`` if there is none before it."""
    while start < stop:
        middle = (start + stop) // 2
        below = tl.load(blocks + middle) < bound
        start = tl.where(below, middle + 1, start)
        stop = tl.where(below, stop, middle)
    return start


@triton.jit
def _key_blocks(
    offsets, blocks, number, first, last, keys, window,
    COLUMNS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Where a list starts and stops, but for key blocks hidden from all positions between ``first`` and ``last``."""
    start, stop = tl.load(offsets + number), tl.load(offsets + number + 1)
    if WINDOW:
        start = _bisect(blocks, start, stop, tl.maximum(first - window + 1, 0) // COLUMNS)
        end = last + 1 if CAUSAL else last + window
        stop = _bisect(blocks, start, stop, tl.cdiv(tl.minimum(tl.maximum(end, 0), keys), COLUMNS))
    elif CAUSAL:
        stop = _bisect(blocks, start, stop, tl.cdiv(tl.minimum(tl.maximum(last + 1, 0), keys), COLUMNS))
    return start, stop


@triton.jit
def _query_blocks(
    offsets, blocks, number, first, last, queries, offset, window,
    ROWS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Where a list starts and stops, but for query blocks that see no key between ``first`` and ``last``."""
    start, stop = tl.load(offsets + number), tl.load(offsets + number + 1)
    if CAUSAL or WINDOW:
        lowest = first - offset if CAUSAL else first - offset - window + 1
        start = _bisect(blocks, start, stop, tl.maximum(lowest, 0) // ROWS)
    if WINDOW:
        end = tl.minimum(tl.maximum(last - offset + window, 0), queries)
        stop = _bisect(blocks, start, stop, tl.cdiv(end, ROWS))
    return start, stop


@triton.jit
def _hide(
    logits, row, column, first_row, first_column, block_row, block_column, end_column, tile, tiles, mask,
    offset, window, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The logits, -inf where a pair is hidden; ``row`` and ``column`` broadcast to their shape, either way round."""
    partly = (tile >= 0) | (first_column + BLOCK_N > end_column)
    if CAUSAL:
        partly |= first_column + BLOCK_N - 1 > first_row + offset
    if WINDOW:
        partly |= first_row + BLOCK_M - 1 + offset - first_column >= window
        partly |= first_column + BLOCK_N - 1 - first_row - offset >= window
    if MASK:
        partly |= tile < 0
    if partly:
        visible = (column < end_column) & (row >= 0)
        if CAUSAL:
            visible &= column <= row + offset
        if WINDOW:
            visible &= tl.abs(row + offset - column) < window
        if MASK:
            visible &= tl.load(mask + column, mask=column < end_column, other=0) != 0
        here = (row < tl.where(tile >= 0, block_row + ROWS, 0)) & (column < block_column + COLUMNS)
        place = (row - block_row) * COLUMNS + (column - block_column)
        visible &= tl.load(tiles + tile.to(tl.int64) * (ROWS * COLUMNS) + place, mask=here, other=1) != 0
        logits = tl.where(visible, logits, float("-inf"))
    return logits


@triton.jit
def attention_kernel(
    query, key, value, mask, offsets, blocks, tile_of, tiles, out, lse,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    queries, keys, head_dim, value_dim, heads, group, layout_group, layout_batch, offset, window, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SLICE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention output and log-sum-exp of some rows."""
    PARTS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    STEPS: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    number = tl.program_id(0)
    query_blocks = tl.cdiv(queries, ROWS)
    place = (number // PARTS // query_blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    block = number // PARTS % query_blocks
    first_row = block * ROWS + number % PARTS * BLOCK_M
    end_row = tl.minimum(block * ROWS + ROWS, queries)
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < end_row
    query += batch * query_batch + head * query_head
    q = _rows(query, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    value += batch * value_batch + head // group * value_head
    mask += batch * keys
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, VALUE_WIDTH], tl.float32)
    of_list = (batch * layout_batch + head // layout_group) * query_blocks + block
    last_row = tl.minimum(first_row + BLOCK_M, end_row) - 1
    start, stop = _key_blocks(
        offsets, blocks, of_list, first_row + offset, last_row + offset, keys, window, COLUMNS, CAUSAL, WINDOW
    )
    for step in range(start * STEPS, stop * STEPS):
        block_column = tl.load(blocks + step // STEPS) * COLUMNS
        first_column = block_column + step % STEPS * BLOCK_N
        end_column = tl.minimum(block_column + COLUMNS, keys)
        column = first_column + tl.arange(0, BLOCK_N)
        inside = column < end_column
        k = _rows(key, column, key_token, inside, head_dim, WIDTH)
        logits = _products(
            q, query, row, query_token, valid, k, key, column, key_token, inside, head_dim,
            WIDTH, SLICE, DOT, PRECISION,
        )  # fmt: skip
        logits = _hide(
            logits * scale, row[:, None], column[None, :], first_row, first_column, block * ROWS, block_column,
            end_column, tl.load(tile_of + step // STEPS), tiles, mask, offset, window,
            ROWS, COLUMNS, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, MASK,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(logits - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weight, axis=1)
        v = _rows(value, column, value_token, inside, value_dim, VALUE_WIDTH)
        sums = tl.dot(weight.to(DOT), v.to(DOT), sums * fade[:, None], input_precision=PRECISION)
        top = new_top
    total = tl.where(total > 0, total, 1.0)
    tl.store(lse + place * queries + row, (tl.log2(total) + top) * LN_2, mask=valid)
    _put(out + place * queries * value_dim, sums / total[:, None], row, value_dim, valid, value_dim, VALUE_WIDTH)


@triton.jit
def query_bwd_kernel(
    query, key, value, mask, offsets, blocks, tile_of, tiles, grad, lse, shift, grad_query,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    grad_batch, grad_head, grad_token,
    queries, keys, head_dim, value_dim, heads, group, layout_group, layout_batch, offset, window, scale, factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SLICE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    DOT: tl.constexpr, GRAD_DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of some queries: ``factor * (map * (grad @ value.T + shift)) @ key``."""
    PARTS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    STEPS: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    number = tl.program_id(0)
    query_blocks = tl.cdiv(queries, ROWS)
    place = (number // PARTS // query_blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    block = number // PARTS % query_blocks
    first_row = block * ROWS + number % PARTS * BLOCK_M
    end_row = tl.minimum(block * ROWS + ROWS, queries)
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < end_row
    query += batch * query_batch + head * query_head
    grad += batch * grad_batch + head * grad_head
    q = _rows(query, row, query_token, valid, head_dim, WIDTH)
    upstream = _rows(grad, row, grad_token, valid, value_dim, VALUE_WIDTH)
    row_shift = tl.load(shift + place * queries + row, mask=valid, other=0.0)
    row_lse = tl.load(lse + place * queries + row, mask=valid, other=0.0) * LOG2_E
    row_lse = tl.where(row_lse == float("-inf"), 0.0, row_lse)
    key += batch * key_batch + head // group * key_head
    value += batch * value_batch + head // group * value_head
    mask += batch * keys
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    of_list = (batch * layout_batch + head // layout_group) * query_blocks + block
    last_row = tl.minimum(first_row + BLOCK_M, end_row) - 1
    start, stop = _key_blocks(
        offsets, blocks, of_list, first_row + offset, last_row + offset, keys, window, COLUMNS, CAUSAL, WINDOW
    )
    for step in range(start * STEPS, stop * STEPS):
        block_column = tl.load(blocks + step // STEPS) * COLUMNS
        first_column = block_column + step % STEPS * BLOCK_N
        end_column = tl.minimum(block_column + COLUMNS, keys)
        column = first_column + tl.arange(0, BLOCK_N)
        inside = column < end_column
        k = _rows(key, column, key_token, inside, head_dim, WIDTH)
        logits = _products(
            q, query, row, query_token, valid, k, key, column, key_token, inside, head_dim,
            WIDTH, SLICE, DOT, PRECISION,
        )  # fmt: skip
        logits = _hide(
            logits * scale, row[:, None], column[None, :], first_row, first_column, block * ROWS, block_column,
            end_column, tl.load(tile_of + step // STEPS), tiles, mask, offset, window,
            ROWS, COLUMNS, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, MASK,
        )  # fmt: skip
        probability = tl.exp2(logits - row_lse[:, None])
        v = _rows(value, column, value_token, inside, value_dim, VALUE_WIDTH)
        change = _products(
            upstream, grad, row, grad_token, valid, v, value, column, value_token, inside, value_dim,
            VALUE_WIDTH, SLICE, DOT, PRECISION,
        )  # fmt: skip
        change = probability * (change + row_shift[:, None])
        sums = tl.dot(change.to(GRAD_DOT), k.to(GRAD_DOT), sums, input_precision=PRECISION)
    _put(grad_query + place * queries * head_dim, sums * factor, row, head_dim, valid, head_dim, WIDTH)


@triton.jit
def key_bwd_kernel(
    query, key, value, mask, offsets, blocks, tile_of, tiles, grad, lse, shift, grad_key, grad_value,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    grad_batch, grad_head, grad_token,
    queries, keys, head_dim, value_dim, heads, group, layout_group, layout_batch, offset, window, scale, factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SLICE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    DOT: tl.constexpr, GRAD_DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of some keys and values, summed over their group; the map is computed transposed."""
    PARTS: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    number = tl.program_id(0)
    key_blocks = tl.cdiv(keys, COLUMNS)
    place = (number // PARTS // key_blocks).to(tl.int64)
    key_heads = heads // group
    batch, of_key = place // key_heads, place % key_heads
    block = number // PARTS % key_blocks
    first_column = block * COLUMNS + number % PARTS * BLOCK_N
    end_column = tl.minimum(block * COLUMNS + COLUMNS, keys)
    column = first_column + tl.arange(0, BLOCK_N)
    valid = column < end_column
    key += batch * key_batch + of_key * key_head
    value += batch * value_batch + of_key * value_head
    k = _rows(key, column, key_token, valid, head_dim, WIDTH)
    v = _rows(value, column, value_token, valid, value_dim, VALUE_WIDTH)
    mask += batch * keys
    sums = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    value_sums = tl.zeros([BLOCK_N, VALUE_WIDTH], tl.float32)
    last_column = tl.minimum(first_column + BLOCK_N, end_column) - 1
    for member in range(group):
        head = of_key * group + member
        of_head = (batch * heads + head) * queries
        at_query = query + batch * query_batch + head * query_head
        at_grad = grad + batch * grad_batch + head * grad_head
        of_list = (batch * layout_batch + head // layout_group) * key_blocks + block
        start, stop = _query_blocks(
            offsets, blocks, of_list, first_column, last_column, queries, offset, window, ROWS, CAUSAL, WINDOW
        )
        for step in range(start * STEPS, stop * STEPS):
            block_row = tl.load(blocks + step // STEPS) * ROWS
            first_row = block_row + step % STEPS * BLOCK_M
            row = first_row + tl.arange(0, BLOCK_M)
            seen = row < tl.minimum(block_row + ROWS, queries)
            # Rows past an end are zero and have a shift of 0: whatever their map, they add nothing.
            q = _rows(at_query, row, query_token, seen, head_dim, WIDTH)
            logits = _products(
                k, key, column, key_token, valid, q, at_query, row, query_token, seen, head_dim,
                WIDTH, SLICE, DOT, PRECISION,
            )  # fmt: skip
            logits = _hide(
                logits * scale, row[None, :], column[:, None], first_row, first_column, block_row, block * COLUMNS,
                end_column, tl.load(tile_of + step // STEPS), tiles, mask, offset, window,
                ROWS, COLUMNS, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, MASK,
            )  # fmt: skip
            row_lse = tl.load(lse + of_head + row, mask=seen, other=0.0) * LOG2_E
            row_lse = tl.where(row_lse == float("-inf"), 0.0, row_lse)
            probability = tl.exp2(logits - row_lse[None, :])
            upstream = _rows(at_grad, row, grad_token, seen, value_dim, VALUE_WIDTH)
            value_sums = tl.dot(probability.to(GRAD_DOT), upstream.to(GRAD_DOT), value_sums, input_precision=PRECISION)
            row_shift = tl.load(shift + of_head + row, mask=seen, other=0.0)
            change = _products(
                v, value, column, value_token, valid, upstream, at_grad, row, grad_token, seen, value_dim,
                VALUE_WIDTH, SLICE, DOT, PRECISION,
            )  # fmt: skip
            change = probability * (change + row_shift[None, :])
            sums = tl.dot(change.to(GRAD_DOT), q.to(GRAD_DOT), sums, input_precision=PRECISION)
    _put(grad_key + place * keys * head_dim, sums * factor, column, head_dim, valid, head_dim, WIDTH)
    _put(grad_value + place * keys * value_dim, value_sums, column, value_dim, valid, value_dim, VALUE_WIDTH)
