"""Decode attention of one sequence: the cache split among programs, the last of a head joins their parts."""

import triton
import triton.language as tl

from backends.handwritten.kernels import start_next, wait


@triton.jit
def load_turned(
    heads, norm, cos, sin, position, eps, first,
    COUNT: tl.constexpr, ROWS: tl.constexpr, DH: tl.constexpr, QK_NORM: tl.constexpr,
):  # fmt: skip
    """Load heads [COUNT, Dh] from `first` on, norm and rotate each: float32 [ROWS, Dh]."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, DH)[None, :]
    swapped = (columns + DH // 2) % DH
    places, inside = heads + (first + rows) * DH, rows < COUNT
    x = tl.load(places + columns, mask=inside, other=0.0).to(tl.float32)
    x_swapped = tl.load(places + swapped, mask=inside, other=0.0).to(tl.float32)
    if QK_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DH + eps)[:, None]
        x = x * scale * tl.load(norm + columns).to(tl.float32)
        x_swapped = x_swapped * scale * tl.load(norm + swapped).to(tl.float32)
    angles = position * DH + columns
    return x * tl.load(cos + angles) + x_swapped * tl.load(sin + angles)


@triton.jit
def load_positions(cache, start, end, BLOCK: tl.constexpr, DH: tl.constexpr):
    """Load positions from start on of one head's cache [C, Dh] as [BLOCK, Dh], zeros from `end` on."""
    rows, columns = start + tl.arange(0, BLOCK)[:, None], tl.arange(0, DH)[None, :]
    return tl.load(cache + rows * DH + columns, mask=rows < end, other=0.0)


@triton.jit
def attend_block(q, k, v, start, end, scale, highest, total, acc, BLOCK: tl.constexpr):
    """Add a block's positions to the running softmax: highest and total [ROWS], acc [ROWS, Dh]."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((start + tl.arange(0, BLOCK) < end)[None, :], scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # nothing seen yet
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(highest - base)
    total = total * kept + tl.sum(weights, axis=1)
    acc = acc * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_highest, total, acc


@triton.jit
def join(
    parts, sizes, out, head, G: tl.constexpr, DH: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Join a key/value head's parts [S, G, Dh] by their sizes [S, G] into its G heads of out [H, Dh]."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, DH)[None, :]
    inside = rows < G
    size = tl.full((ROWS, 1), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, 1), tl.float32)
    acc = tl.zeros((ROWS, DH), tl.float32)
    for split in tl.static_range(SPLITS):
        places = (head * SPLITS + split) * G + rows
        # Other SMs wrote these: .cg reads past this SM's own cache. Split 0 is never empty.
        next_size = tl.load(sizes + places, mask=inside, other=0.0, cache_modifier=".cg")
        part = tl.load(parts + places * DH + columns, mask=inside, other=0.0, cache_modifier=".cg")
        new_size = tl.maximum(size, next_size)
        kept, added = tl.exp2(size - new_size), tl.exp2(next_size - new_size)
        total = total * kept + added
        acc = acc * kept + part * added
        size = new_size
    tl.store(out + (head * G + rows) * DH + columns, (acc / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend(
    qkv, q_norm, k_norm, cos, sin, keys, values, position, parts, sizes, arrived, out, eps, scale,
    C: tl.constexpr, G: tl.constexpr, KV_HEADS: tl.constexpr, DH: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, JOINED: tl.constexpr, QK_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attend with qkv [(H + 2 KV_HEADS) * Dh] to the cache, keys and values [KV_HEADS, C, Dh], and extend it.

    One program for each key/value head and split; split 0 has the newest position besides its share, the only
    one that the kernel before this one brings. `scale` includes log2(e).
    """
    start_next(PDL)
    head, split = tl.program_id(0), tl.program_id(1)
    at = tl.load(position).to(tl.int32)
    share = tl.cdiv(at, SPLITS)
    start = split * share
    end = tl.minimum(start + share, at)
    keys += head.to(tl.int64) * C * DH
    values += head.to(tl.int64) * C * DH
    k = load_positions(keys, start, end, BLOCK, DH)
    v = load_positions(values, start, end, BLOCK, DH)
    wait(PDL)
    q = load_turned(qkv, q_norm, cos, sin, at, eps, head * G, G, ROWS, DH, QK_NORM).to(k.dtype)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DH), tl.float32)
    if split == 0:
        columns = tl.arange(0, DH)[None, :]
        first = KV_HEADS * G + head
        k_new = load_turned(qkv, k_norm, cos, sin, at, eps, first, 1, 1, DH, QK_NORM).to(k.dtype)
        v_new = tl.load(qkv + (first + KV_HEADS) * DH + columns)
        tl.store(keys + at * DH + columns, k_new)
        tl.store(values + at * DH + columns, v_new)
        highest = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), axis=1) * scale
        total += 1.0
        acc += v_new.to(tl.float32)
    highest, total, acc = attend_block(q, k, v, start, end, scale, highest, total, acc, BLOCK)
    if C > SPLITS * BLOCK:
        for block in tl.range(start + BLOCK, end, BLOCK, num_stages=3):
            k = load_positions(keys, block, end, BLOCK, DH)
            v = load_positions(values, block, end, BLOCK, DH)
            highest, total, acc = attend_block(q, k, v, block, end, scale, highest, total, acc, BLOCK)
    total = tl.where(total == 0, 1.0, total)  # an empty share: its size is -inf
    rows, columns = tl.arange(0, ROWS), tl.arange(0, DH)[None, :]
    places = (head * SPLITS + split) * G + rows
    tl.store(sizes + places, highest + tl.log2(total), mask=rows < G)
    tl.store(parts + places[:, None] * DH + columns, acc / total[:, None], mask=(rows < G)[:, None])
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(arrived + head, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(arrived + head, 0)
        join(parts, sizes, out, head, G, DH, SPLITS, JOINED)
