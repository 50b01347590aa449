"""The Triton kernels of a decode step of one sequence.

Each begins with what no kernel before it in the step can change, weights and older keys and values, and waits
for its predecessor only then: by programmatic dependent launch (PDL) its programs start, and read, while the
predecessor's last ones run. D hidden size, N rows and K columns of a matrix, H query heads, G of them to each
key/value head, Dh head size, C capacity, S splits of the cache.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SLOTS = 64
"""Where the best logits of the head's programs meet: one place for all would be a queue."""


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the next kernel's programs start once all of this kernel's have."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Return when all kernels before this one are done and what they wrote can be read."""
    if PDL:
        gdc_wait()


@triton.jit
def load_rows(weight, first, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows first, first + 1, ... of a matrix [N, K] as [ROWS, BLOCK], zeros beyond K."""
    columns = tl.arange(0, BLOCK)[None, :]
    places = weight + first.to(tl.int64) * K + tl.arange(0, ROWS)[:, None] * K + columns
    if BLOCK == K:
        return tl.load(places, eviction_policy="evict_first")
    return tl.load(places, mask=columns < K, other=0.0, eviction_policy="evict_first")


@triton.jit
def load_vector(vector, K: tl.constexpr, BLOCK: tl.constexpr):
    """Load a vector [K] as float32 [1, BLOCK], zeros beyond K."""
    columns = tl.arange(0, BLOCK)[None, :]
    if BLOCK == K:
        return tl.load(vector + columns).to(tl.float32)
    return tl.load(vector + columns, mask=columns < K, other=0.0).to(tl.float32)


@triton.jit
def add_pairs(a0, a1, b0, b1):
    """Add two sums side by side: one pass over the warps, and one wait for them, for both."""
    return a0 + b0, a1 + b1


@triton.jit
def add_triples(a0, a1, a2, b0, b1, b2):
    """Add three sums side by side."""
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def multiply_normed(
    x, norm, weight, first, eps,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply rows first, first + 1, ... of weight [N, K] by x [K] normed and scaled; returns [ROWS]."""
    start_next(PDL)
    rows = load_rows(weight, first, K, ROWS, BLOCK)
    scale = load_vector(norm, K, BLOCK)
    wait(PDL)
    x = load_vector(x, K, BLOCK)
    squares = tl.broadcast_to(x * x, rows.shape)
    y, square = tl.reduce((rows.to(tl.float32) * (x * scale), squares), 1, add_pairs)
    return y * tl.rsqrt(square / K + eps)


@triton.jit
def embed(token, table, residual, D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Look the token up: the first of a step, so it is launched after all work before it, without PDL."""
    start_next(PDL)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    row = tl.load(token).to(tl.int64)
    tl.store(residual + columns, tl.load(table + row * D + columns, mask=inside), mask=inside)


@triton.jit
def project_normed(
    x, norm, weight, bias, out, eps,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Norm x [K], multiply by weight [N, K], add bias [N]."""
    first = tl.program_id(0) * ROWS
    y = multiply_normed(x, norm, weight, first, eps, K, ROWS, BLOCK, PDL)
    places = first + tl.arange(0, ROWS)
    if BIAS:
        y += tl.load(bias + places).to(tl.float32)
    tl.store(out + places, y.to(out.dtype.element_ty))


@triton.jit
def project_added(
    x, weight, residual,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply x [K] by weight [N, K] and add to the residual [N] in place."""
    start_next(PDL)
    first = tl.program_id(0) * ROWS
    rows = load_rows(weight, first, K, ROWS, BLOCK)
    wait(PDL)
    places = residual + first + tl.arange(0, ROWS)
    before = tl.load(places).to(tl.float32)
    y = tl.sum(rows.to(tl.float32) * load_vector(x, K, BLOCK), axis=1)
    tl.store(places, (before + y).to(residual.dtype.element_ty))


@triton.jit
def project_gated(
    x, norm, weight, out, eps, F,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Norm x [K], multiply by gate and up, weight [2F, K], and compute silu(gate) * up [F]."""
    start_next(PDL)
    first = tl.program_id(0) * ROWS
    gate_rows = load_rows(weight, first, K, ROWS, BLOCK)
    up_rows = load_rows(weight, first + F, K, ROWS, BLOCK)
    scale = load_vector(norm, K, BLOCK)
    wait(PDL)
    x = load_vector(x, K, BLOCK)
    y = x * scale
    squares = tl.broadcast_to(x * x, gate_rows.shape)
    products = (gate_rows.to(tl.float32) * y, up_rows.to(tl.float32) * y, squares)
    gate, up, square = tl.reduce(products, 1, add_triples)
    inverse = tl.rsqrt(square / K + eps)
    gate *= inverse
    up *= inverse
    tl.store(out + first + tl.arange(0, ROWS), (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty))


@triton.jit
def project_logits(
    x, norm, weight, logits, best, eps,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Norm x [K], multiply by the head [V, K], keep the best logit, packed with its index, in best."""
    first = tl.program_id(0) * ROWS
    places = first + tl.arange(0, ROWS)
    y = multiply_normed(x, norm, weight, first, eps, K, ROWS, BLOCK, PDL)
    rounded = y.to(logits.dtype.element_ty)
    tl.store(logits + places, rounded)
    # A float's bits, those below the sign flipped where it is negative, are in order as integers. The index
    # is below them, from the top down, so that of equal logits the first wins.
    bits = rounded.to(tl.float32).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    packed = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - places.to(tl.int64))
    tl.atomic_max(best + tl.program_id(0) % SLOTS, tl.max(packed, axis=0), sem="relaxed")


@triton.jit
def finish(best, token, position, SLOTS: tl.constexpr, PDL: tl.constexpr):
    """Unpack the best logit's index as the next token, clear the slots, advance the position."""
    wait(PDL)
    places = best + tl.arange(0, SLOTS)
    winner = tl.max(tl.load(places), axis=0)
    tl.store(token, (0xFFFFFFFF - (winner & 0xFFFFFFFF)).to(tl.int32))
    tl.store(places, tl.full((SLOTS,), -(2**63), tl.int64))
    tl.store(position, tl.load(position) + 1)
