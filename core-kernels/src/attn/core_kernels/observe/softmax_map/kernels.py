"""Triton kernels of the observe operators: each walks over tiles of logits and stores what is read off them.

Kernels that end in rows (log-sum-exp, attention, distances, gradients of queries) take a block of rows and loop over
the keys that order and window leave them; those that end in columns take a block of keys and loop over the rows that
may see it. Every sum has one owner and one order, so that results repeat bit for bit.

Logits are in powers of two: ``scale`` holds a factor log2(e). Products of rows are taken in ``DOT`` and summed in
float32; ``PRECISION`` says how float32 products are taken. Arguments that the kernels share: ``mask`` has a byte per
batch row and key, only if ``MASK``; ``positions`` the position of each row, only if ``POSITIONS``, else row ``i``
stands at ``i + offset``; ``columns`` the keys that stand for columns, only if ``COLUMNS``. ``group`` query heads share
a key.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(2**30)


@triton.jit
def _tile(pointer, rows, row_stride, valid, width, WIDTH: tl.constexpr):
    """Load ``[rows, WIDTH]``, zero outside."""
    column = tl.arange(0, WIDTH)
    inside = valid[:, None] & (column < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * row_stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _put(pointer, tile, rows, row_stride, valid, width, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    inside = valid[:, None] & (column < width)[None, :]
    tl.store(pointer + rows.to(tl.int64)[:, None] * row_stride + column[None, :], tile, mask=inside)


@triton.jit
def _product(left, right, sums, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """``sums + left @ right``."""
    return tl.dot(left.to(DOT), right.to(DOT), sums, input_precision=PRECISION)


@triton.jit
def _position(positions, row, valid, offset, POSITIONS: tl.constexpr):
    if POSITIONS:
        return tl.load(positions + row, mask=valid, other=0).to(tl.int32)
    return row + offset


@triton.jit
def _column(columns, index, width, keys, COLUMNS: tl.constexpr):
    """The key that stands at each index, ``keys``, which nothing sees, past the end."""
    if COLUMNS:
        return tl.load(columns + index, mask=index < width, other=keys).to(tl.int32)
    return index


@triton.jit
def _visible_keys(position, valid, keys, window, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Where to start, and where to stop, a walk over the keys that order and window leave to any of the rows."""
    lowest, highest = tl.min(tl.where(valid, position, FAR), axis=0), tl.max(tl.where(valid, position, -FAR), axis=0)
    start, stop = lowest * 0, highest * 0 + keys
    if CAUSAL:
        stop = tl.minimum(stop, highest + 1)
    if WINDOW:
        start = tl.maximum(start, lowest - window + 1) // BLOCK * BLOCK
        stop = tl.minimum(stop, highest + window)
    return start, stop


@triton.jit
def _seeing_rows(
    first, count, queries, offset, window,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, ANY_ORDER: tl.constexpr,
):  # fmt: skip
    """Where to start, and where to stop, a walk over the rows that order and window let see any of ``count`` keys."""
    start, stop = first * 0, first * 0 + queries
    if not ANY_ORDER:
        if CAUSAL:
            start = tl.maximum(start, first - offset)
        if WINDOW:
            start = tl.maximum(start, first - offset - window + 1)
            stop = tl.minimum(stop, first + count - 1 - offset + window)
        start = start // BLOCK * BLOCK
    return start, stop


@triton.jit
def _visible(
    position, column, valid, keys, mask, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr
):
    visible = valid[:, None] & (column < keys)[None, :]
    if CAUSAL:
        visible &= column[None, :] <= position[:, None]
    if WINDOW:
        visible &= tl.abs(position[:, None] - column[None, :]) < window
    if MASK:
        visible &= (tl.load(mask + column, mask=column < keys, other=0) != 0)[None, :]
    return visible


@triton.jit
def _logits(q, k, visible, scale, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Logits ``[rows, columns]``, -inf where hidden."""
    product = tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision=PRECISION)
    return tl.where(visible, product * scale, float("-inf"))


@triton.jit
def _probability(logits, lse, row, valid):
    row_lse = tl.load(lse + row, mask=valid, other=0.0) * LOG2_E
    return tl.exp2(logits - tl.where(row_lse == float("-inf"), 0.0, row_lse)[:, None])


@triton.jit
def row_stats_kernel(
    query, key, mask, positions, lse, highest, argmax, entropy,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    queries, keys, head_dim, heads, group, offset, window, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    STATS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of some rows; if ``STATS`` their largest logit, its first key and the entropy too."""
    blocks = tl.cdiv(queries, BLOCK_M)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    row = number % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    mask += batch * keys
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)  # of the logits below the top
    best = tl.full([BLOCK_M], -1, tl.int32)
    start, stop = _visible_keys(position, valid, keys, window, BLOCK_N, CAUSAL, WINDOW)
    for first in range(start, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _tile(key, column, key_token, column < keys, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
        logits = _logits(q, k, visible, scale, DOT, PRECISION)
        tile_top = tl.max(logits, axis=1)
        new_top = tl.maximum(top, tile_top)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        below = tl.maximum(logits - base[:, None], -1e30)  # 0 times it is 0
        weight = tl.exp2(below)
        fade = tl.exp2(top - base)
        if STATS:
            best = tl.where(tile_top > top, first + tl.argmax(logits, axis=1), best)
            drop = tl.where(top == float("-inf"), 0.0, top - base)
            moment = fade * (moment + total * drop) + tl.sum(weight * below, axis=1)
        total = total * fade + tl.sum(weight, axis=1)
        top = new_top
    sees_any = total > 0
    total = tl.where(sees_any, total, 1.0)
    out = place * queries + row
    tl.store(lse + out, (tl.log2(total) + top) * LN_2, mask=valid)
    if STATS:
        tl.store(highest + out, top * LN_2, mask=valid)
        tl.store(argmax + out, best.to(tl.int64), mask=valid)
        tl.store(entropy + out, (tl.log2(total) - moment / total) * LN_2, mask=valid)


@triton.jit
def attention_kernel(
    query, key, value, mask, positions, out, lse,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    value_batch, value_head, value_token,
    queries, keys, head_dim, heads, group, offset, window, scale, value_dim,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention output and log-sum-exp of some rows."""
    blocks = tl.cdiv(queries, BLOCK_M)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    row = number % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    value += batch * value_batch + head // group * value_head
    mask += batch * keys
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, VALUE_WIDTH], tl.float32)
    start, stop = _visible_keys(position, valid, keys, window, BLOCK_N, CAUSAL, WINDOW)
    for first in range(start, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _tile(key, column, key_token, column < keys, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
        logits = _logits(q, k, visible, scale, DOT, PRECISION)
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(logits - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weight, axis=1)
        v = _tile(value, column, value_token, column < keys, value_dim, VALUE_WIDTH)
        sums = _product(weight, v, sums * fade[:, None], DOT, PRECISION)
        top = new_top
    total = tl.where(total > 0, total, 1.0)
    tl.store(lse + place * queries + row, (tl.log2(total) + top) * LN_2, mask=valid)
    _put(out + place * queries * value_dim, sums / total[:, None], row, value_dim, valid, value_dim, VALUE_WIDTH)


@triton.jit
def key_moments_kernel(
    query, key, mask, positions, lse, weights, mass, square,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    weights_batch, weights_head, weights_set, weights_row,
    queries, keys, head_dim, heads, group, offset, window, scale, sets,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, SETS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    SQUARES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weighted sums of some columns of the map, and of its squares if ``SQUARES``, for ``SETS`` sets of weights."""
    blocks, set_blocks = tl.cdiv(keys, BLOCK_N), tl.cdiv(sets, SETS)
    number = tl.program_id(0)
    place = (number // blocks // set_blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    first_key = number % blocks * BLOCK_N
    column = first_key + tl.arange(0, BLOCK_N)
    index = number // blocks % set_blocks * SETS + tl.arange(0, SETS)
    query += batch * query_batch + head * query_head
    k = _tile(key + batch * key_batch + head // group * key_head, column, key_token, column < keys, head_dim, WIDTH)
    mask += batch * keys
    positions += batch * positions_batch
    weights += batch * weights_batch + head * weights_head
    lse += place * queries
    sums = tl.zeros([SETS, BLOCK_N], tl.float32)
    square_sums = tl.zeros([SETS, BLOCK_N], tl.float32)
    start, stop = _seeing_rows(first_key, BLOCK_N, queries, offset, window, BLOCK_M, CAUSAL, WINDOW, POSITIONS)
    for first in range(start, stop, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        valid = row < queries
        position = _position(positions, row, valid, offset, POSITIONS)
        q = _tile(query, row, query_token, valid, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
        probability = _probability(_logits(q, k, visible, scale, DOT, PRECISION), lse, row, valid)
        at = weights + index[:, None].to(tl.int64) * weights_set + row[None, :].to(tl.int64) * weights_row
        weight = tl.load(at, mask=(index < sets)[:, None] & valid[None, :], other=0.0).to(tl.float32)
        if SETS == 1:
            sums += tl.sum(tl.trans(weight) * probability, axis=0)[None, :]
            if SQUARES:
                square_sums += tl.sum(tl.trans(weight) * probability * probability, axis=0)[None, :]
        else:
            sums = tl.dot(weight, probability, sums, input_precision="tf32x3")
            if SQUARES:
                square_sums = tl.dot(weight, probability * probability, square_sums, input_precision="tf32x3")
    inside = (index < sets)[:, None] & (column < keys)[None, :]
    at = (place * sets + index)[:, None] * keys + column[None, :]
    tl.store(mass + at, sums, mask=inside)
    if SQUARES:
        tl.store(square + at, square_sums, mask=inside)


@triton.jit
def suffix_key_mass_kernel(
    query, key, mask, positions, lse, out,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    queries, keys, head_dim, heads, group, offset, window, scale, count, block_size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Column sums over the rows of ever more blocks, from the last block up, averaged over ``count`` heads."""
    blocks = tl.cdiv(keys, BLOCK_N)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    first_key = number % blocks * BLOCK_N
    column = first_key + tl.arange(0, BLOCK_N)
    valid_column = column < keys
    batch = place * count // heads
    mask += batch * keys
    positions += batch * positions_batch
    query_blocks = tl.cdiv(queries, block_size)
    sums = tl.zeros([BLOCK_N], tl.float32)
    seen_from, seen_to = _seeing_rows(first_key, BLOCK_N, queries, offset, window, 1, CAUSAL, WINDOW, POSITIONS)
    for reverse in range(query_blocks):
        block = query_blocks - 1 - reverse
        stop = tl.minimum(tl.minimum((block + 1) * block_size, queries), seen_to)
        start = tl.maximum(block * block_size, seen_from)
        for first in range(start, stop, BLOCK_M):
            row = first + tl.arange(0, BLOCK_M)
            valid = row < stop
            position = _position(positions, row, valid, offset, POSITIONS)
            visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
            for step in range(count):
                head = place * count % heads + step
                q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
                k = _tile(key + batch * key_batch + head // group * key_head, column, key_token, valid_column,
                          head_dim, WIDTH)  # fmt: skip
                logits = _logits(q, k, visible, scale, DOT, PRECISION)
                sums += tl.sum(_probability(logits, lse + (batch * heads + head) * queries, row, valid), axis=0)
        tl.store(out + (place * query_blocks + block) * keys + column, sums / count, mask=valid_column)


@triton.jit
def submap_kernel(
    query, key, mask, positions, columns, lse, out,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch, columns_batch,
    queries, keys, head_dim, heads, group, offset, window, scale, count, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the map at the chosen columns, averaged over ``count`` heads."""
    blocks, column_blocks = tl.cdiv(queries, BLOCK_M), tl.cdiv(width, BLOCK_N)
    number = tl.program_id(0)
    place = (number // column_blocks // blocks).to(tl.int64)
    batch = place * count // heads
    row = number // column_blocks % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    index = number % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    column = _column(columns + batch * columns_batch, index, width, keys, COLUMNS)
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    visible = _visible(position, column, valid, keys, mask + batch * keys, window, CAUSAL, WINDOW, MASK)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(count):
        head = place * count % heads + step
        q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
        k = _tile(key + batch * key_batch + head // group * key_head, column, key_token, column < keys, head_dim, WIDTH)
        logits = _logits(q, k, visible, scale, DOT, PRECISION)
        sums += _probability(logits, lse + (batch * heads + head) * queries, row, valid)
    at = (place * queries + row)[:, None] * width + index[None, :]
    tl.store(out + at, sums / count, mask=valid[:, None] & (index < width)[None, :])


@triton.jit
def tile_stats_kernel(
    query, key, mask, positions, lse, total, highest, below, seen,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    queries, keys, head_dim, heads, group, offset, window, scale, tile_rows, tile_keys, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum, maximum, visible entries below ``eps`` and visible entries of one tile of the map."""
    row_tiles, key_tiles = tl.cdiv(queries, tile_rows), tl.cdiv(keys, tile_keys)
    number = tl.program_id(0)
    place = (number // key_tiles // row_tiles).to(tl.int64)
    batch, head = place // heads, place % heads
    first_row = number // key_tiles % row_tiles * tile_rows
    first_key = number % key_tiles * tile_keys
    last_row = tl.minimum(first_row + tile_rows, queries)
    last_key = tl.minimum(first_key + tile_keys, keys)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // group * key_head
    mask += batch * keys
    positions += batch * positions_batch
    lse += place * queries
    sums = tl.zeros([BLOCK_N], tl.float32)
    top = tl.zeros([BLOCK_N], tl.float32)
    counts = tl.zeros([BLOCK_N], tl.int64)
    counts_below = tl.zeros([BLOCK_N], tl.int64)
    start, stop = _seeing_rows(first_key, last_key - first_key, queries, offset, window, 1, CAUSAL, WINDOW, POSITIONS)
    for first in range(tl.maximum(start, first_row), tl.minimum(stop, last_row), BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        valid = row < last_row
        position = _position(positions, row, valid, offset, POSITIONS)
        q = _tile(query, row, query_token, valid, head_dim, WIDTH)
        for start_key in range(first_key, last_key, BLOCK_N):
            column = start_key + tl.arange(0, BLOCK_N)
            k = _tile(key, column, key_token, column < last_key, head_dim, WIDTH)
            visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
            visible &= (column < last_key)[None, :]
            probability = _probability(_logits(q, k, visible, scale, DOT, PRECISION), lse, row, valid)
            sums += tl.sum(probability, axis=0)
            top = tl.maximum(top, tl.max(probability, axis=0))
            counts += tl.sum(visible.to(tl.int32), axis=0)
            counts_below += tl.sum((visible & (probability < eps)).to(tl.int32), axis=0)
    tl.store(total + number, tl.sum(sums, axis=0))
    tl.store(highest + number, tl.max(top, axis=0))
    tl.store(below + number, tl.sum(counts_below, axis=0))
    tl.store(seen + number, tl.sum(counts, axis=0))


@triton.jit
def by_distance_kernel(
    query, key, mask, positions, query_places, key_places, edges, lse, sums, pairs,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch,
    queries, keys, head_dim, heads, group, offset, window, scale, bands,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BANDS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr,
    LOGITS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Mass of each row in each distance band; if ``LOGITS``, sum and number of a row block's visible logits."""
    blocks = tl.cdiv(queries, BLOCK_M)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    row = number % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    mask += batch * keys
    of_query = tl.load(query_places + row, mask=valid, other=-1)
    band = tl.arange(0, BANDS)
    band_sums = tl.zeros([BLOCK_M, BANDS], tl.float32)
    band_pairs = tl.zeros([BANDS], tl.int64)
    start, stop = _visible_keys(position, valid, keys, window, BLOCK_N, CAUSAL, WINDOW)
    for first in range(start, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        k = _tile(key, column, key_token, column < keys, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
        logits = _logits(q, k, visible, scale, DOT, PRECISION)
        of_key = tl.load(key_places + column, mask=column < keys, other=-1)
        distance = tl.abs(of_query[:, None] - of_key[None, :])
        known = visible & (of_query >= 0)[:, None] & (of_key >= 0)[None, :]
        entries = logits * LN_2 if LOGITS else _probability(logits, lse + place * queries, row, valid)
        for number_of_band in range(bands):
            inside = known & (distance >= tl.load(edges + number_of_band))
            inside &= distance < tl.load(edges + number_of_band + 1)
            here = (band == number_of_band).to(tl.int32)
            band_sums += tl.sum(tl.where(inside, entries, 0.0), axis=1)[:, None] * here[None, :]
            if LOGITS:
                band_pairs += tl.sum(tl.sum(inside.to(tl.int32), axis=1), axis=0) * here
    if LOGITS:
        at = number.to(tl.int64) * bands + band
        tl.store(sums + at, tl.sum(band_sums, axis=0), mask=band < bands)
        tl.store(pairs + at, band_pairs, mask=band < bands)
    else:
        _put(sums + place * queries * bands, band_sums, row, bands, valid, bands, BANDS)


@triton.jit
def _stored_gradient(grad, row, index, valid, grad_row, width):
    """Load the gradient of a tile of the map, zero outside."""
    at = grad + row.to(tl.int64)[:, None] * grad_row + index[None, :]
    return tl.load(at, mask=valid[:, None] & (index < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def map_shift_kernel(
    query, key, mask, positions, columns, lse, grad, shift,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch, columns_batch,
    grad_batch, grad_head, grad_row,
    queries, keys, head_dim, heads, group, offset, window, scale, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Minus the sum over a row of map times gradient, which the gradients of all its logits share."""
    blocks = tl.cdiv(queries, BLOCK_M)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    row = number % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    grad += batch * grad_batch + head * grad_head
    sums = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, width, BLOCK_N):
        index = first + tl.arange(0, BLOCK_N)
        column = _column(columns + batch * columns_batch, index, width, keys, COLUMNS)
        k = _tile(key, column, key_token, column < keys, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask + batch * keys, window, CAUSAL, WINDOW, MASK)
        probability = _probability(_logits(q, k, visible, scale, DOT, PRECISION), lse + place * queries, row, valid)
        sums += tl.sum(probability * _stored_gradient(grad, row, index, valid, grad_row, width), axis=1)
    tl.store(shift + place * queries + row, -sums, mask=valid)


@triton.jit
def query_bwd_kernel(
    query, key, value, mask, positions, columns, lse, shift, grad, grad_query,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch, columns_batch,
    value_batch, value_head, value_token, grad_batch, grad_head, grad_row,
    queries, keys, head_dim, heads, group, offset, window, scale, width, value_dim, factor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr,
    OF_MAP: tl.constexpr, OF_VALUE: tl.constexpr, SHIFT: tl.constexpr,
    DOT: tl.constexpr, GRAD_DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of some queries: ``factor * (map * (gradient of the map + shift)) @ key``."""
    blocks = tl.cdiv(queries, BLOCK_M)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    batch, head = place // heads, place % heads
    row = number % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < queries
    position = _position(positions + batch * positions_batch, row, valid, offset, POSITIONS)
    q = _tile(query + batch * query_batch + head * query_head, row, query_token, valid, head_dim, WIDTH)
    key += batch * key_batch + head // group * key_head
    value += batch * value_batch + head // group * value_head
    grad += batch * grad_batch + head * grad_head
    if OF_VALUE:
        upstream = _tile(grad, row, grad_row, valid, value_dim, VALUE_WIDTH)
    if SHIFT:
        row_shift = tl.load(shift + place * queries + row, mask=valid, other=0.0)
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    if COLUMNS:
        start, stop = 0, width
    else:
        start, stop = _visible_keys(position, valid, keys, window, BLOCK_N, CAUSAL, WINDOW)
    for first in range(start, stop, BLOCK_N):
        index = first + tl.arange(0, BLOCK_N)
        column = _column(columns + batch * columns_batch, index, width, keys, COLUMNS)
        k = _tile(key, column, key_token, column < keys, head_dim, WIDTH)
        visible = _visible(position, column, valid, keys, mask + batch * keys, window, CAUSAL, WINDOW, MASK)
        probability = _probability(_logits(q, k, visible, scale, DOT, PRECISION), lse + place * queries, row, valid)
        tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if OF_VALUE:
            v = _tile(value, index, value_token, index < width, value_dim, VALUE_WIDTH)
            tile = _product(upstream, tl.trans(v), tile, DOT, PRECISION)
        if OF_MAP:
            tile += _stored_gradient(grad, row, index, valid, grad_row, width)
        if SHIFT:
            tile += row_shift[:, None]
        sums = _product(probability * tile, k, sums, GRAD_DOT, PRECISION)
    _put(grad_query + place * queries * head_dim, sums * factor, row, head_dim, valid, head_dim, WIDTH)


@triton.jit
def key_bwd_kernel(
    query, key, value, mask, positions, columns, lse, shift, grad, grad_key, grad_value,
    query_batch, query_head, query_token, key_batch, key_head, key_token, positions_batch, columns_batch,
    value_batch, value_head, value_token, grad_batch, grad_head, grad_row,
    queries, keys, head_dim, heads, group, offset, window, scale, width, value_dim, factor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr,
    OF_MAP: tl.constexpr, OF_VALUE: tl.constexpr, SHIFT: tl.constexpr,
    DOT: tl.constexpr, GRAD_DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of some keys (of some columns if ``COLUMNS``), summed over their group, and of the values."""
    blocks = tl.cdiv(width, BLOCK_N)
    number = tl.program_id(0)
    place = (number // blocks).to(tl.int64)
    key_heads = heads // group
    batch, of_key = place // key_heads, place % key_heads
    first_index = number % blocks * BLOCK_N
    index = first_index + tl.arange(0, BLOCK_N)
    column = _column(columns + batch * columns_batch, index, width, keys, COLUMNS)
    k = _tile(key + batch * key_batch + of_key * key_head, column, key_token, column < keys, head_dim, WIDTH)
    if OF_VALUE:
        value += batch * value_batch + of_key * value_head
        v = _tile(value, index, value_token, index < width, value_dim, VALUE_WIDTH)
    mask += batch * keys
    positions += batch * positions_batch
    sums = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    value_sums = tl.zeros([BLOCK_N, VALUE_WIDTH], tl.float32)
    ANY_ORDER: tl.constexpr = POSITIONS or COLUMNS
    start, stop = _seeing_rows(first_index, BLOCK_N, queries, offset, window, BLOCK_M, CAUSAL, WINDOW, ANY_ORDER)
    for step in range(group):
        head = of_key * group + step
        of_head = (batch * heads + head) * queries
        at_query = query + batch * query_batch + head * query_head
        at_grad = grad + batch * grad_batch + head * grad_head
        for first in range(start, stop, BLOCK_M):
            row = first + tl.arange(0, BLOCK_M)
            valid = row < queries
            position = _position(positions, row, valid, offset, POSITIONS)
            q = _tile(at_query, row, query_token, valid, head_dim, WIDTH)
            visible = _visible(position, column, valid, keys, mask, window, CAUSAL, WINDOW, MASK)
            probability = _probability(_logits(q, k, visible, scale, DOT, PRECISION), lse + of_head, row, valid)
            tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if OF_VALUE:
                upstream = _tile(at_grad, row, grad_row, valid, value_dim, VALUE_WIDTH)
                value_sums = _product(tl.trans(probability), upstream, value_sums, GRAD_DOT, PRECISION)
                tile = _product(upstream, tl.trans(v), tile, DOT, PRECISION)
            if OF_MAP:
                tile += _stored_gradient(at_grad, row, index, valid, grad_row, width)
            if SHIFT:
                tile += tl.load(shift + of_head + row, mask=valid, other=0.0)[:, None]
            sums = _product(tl.trans(probability * tile), q, sums, GRAD_DOT, PRECISION)
    _put(grad_key + place * width * head_dim, sums * factor, index, head_dim, index < width, head_dim, WIDTH)
    if OF_VALUE:
        _put(grad_value + place * width * value_dim, value_sums, index, value_dim, index < width, value_dim,
             VALUE_WIDTH)  # fmt: skip
