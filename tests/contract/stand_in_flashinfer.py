"""A stand-in for the library `flashinfer` on a CPU: what the backend calls, computed the plainest way."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attend with q [T, H, W] to k and v [C, K, W]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True, scale=scale)
    return out[0].transpose(0, 1)


class BatchDecodeWithPagedKVCacheWrapper:
    plans = 0

    def __init__(self, workspace: Tensor, layout: str, **buffers: Any) -> None:
        assert layout == "NHD"
        self.indptr = buffers["paged_kv_indptr_buffer"]
        self.indices = buffers["paged_kv_indices_buffer"]
        self.last = buffers["paged_kv_last_page_len_buffer"]

    def plan(
        self, indptr: Tensor, indices: Tensor, last: Tensor, heads: int, kv_heads: int, width: int, page: int,
        *, sm_scale: float, q_data_type: torch.dtype, disable_split_kv: bool,
    ) -> None:  # fmt: skip
        self.indptr.copy_(indptr)
        self.indices[: len(indices)].copy_(indices)
        self.last.copy_(last)
        self.shape, self.page, self.scale, self.dtype = (heads, kv_heads, width), page, sm_scale, q_data_type
        self.whole = disable_split_kv
        self.plans += 1

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        assert (q.shape[1], cache[0].shape[2], q.shape[2]) == self.shape
        assert q.dtype == cache[0].dtype == self.dtype
        rows = []
        for sequence in range(len(self.last)):
            pages = self.indices[self.indptr[sequence] : self.indptr[sequence + 1]]
            length = (len(pages) - 1) * self.page + int(self.last[sequence])
            k, v = (tensor[pages].flatten(0, 1)[:length] for tensor in cache)
            rows.append(attend(q[sequence][None], k, v, self.scale, causal=False))
        return torch.cat(rows)


class BlockSparseAttentionWrapper:
    """Blocks of R queries by C positions; a row of blocks is causal within what its columns hold."""

    plans = 0

    def __init__(self, workspace: Tensor, *, backend: str) -> None:
        assert backend == "fa2"

    def plan(
        self, indptr: Tensor, indices: Tensor, M: int, N: int, R: int, C: int, heads: int, kv_heads: int,
        width: int, *, causal: bool, sm_scale: float, q_data_type: torch.dtype, o_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        assert causal
        assert len(indptr) == M // R + 1
        assert indptr[-1] == len(indices)
        assert indices.max() * C < N
        self.rows = [indices[slice(*pair)] for pair in itertools.pairwise(indptr.tolist())]
        self.shape, self.R, self.C = ((M, heads, width), (N, kv_heads, width)), R, C
        self.scale, self.dtype = sm_scale, q_data_type
        assert q_data_type == o_data_type
        self.plans += 1

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.is_contiguous()
        assert q.dtype == k.dtype == self.dtype
        k, v = (x.reshape(-1, self.C, *x.shape[-2:]) for x in (k, v))
        assert (q.shape, k.flatten(0, 1).shape) == self.shape
        out = torch.empty_like(q)
        for row, columns in enumerate(self.rows):
            keys, values = (x[columns].flatten(0, 1) for x in (k, v))
            for place in range(self.R):
                at, seen = row * self.R + place, len(keys) - self.R + place + 1
                out[at] = attend(q[at][None], keys[:seen], values[:seen], self.scale, causal=False)[0]
        return out


class BatchPrefillWithRaggedKVCacheWrapper:
    plans = 0

    def __init__(self, workspace: Tensor, layout: str, **buffers: Any) -> None:
        assert layout == "NHD"
        self.starts = buffers["qo_indptr_buf"]

    def plan(
        self, q_starts: Tensor, k_starts: Tensor, heads: int, kv_heads: int, width: int,
        *, causal: bool, sm_scale: float, q_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        assert torch.equal(q_starts, k_starts)
        self.starts.copy_(q_starts)
        self.causal, self.scale = causal, sm_scale
        self.plans += 1

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [slice(*pair) for pair in itertools.pairwise(self.starts.tolist())]
        return torch.cat([attend(q[part], k[part], v[part], self.scale, self.causal) for part in parts])


def xqa(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, out: Tensor, workspace: Tensor,
    done: Tensor, kv_heads: int, page: int, *, q_scale: float,
) -> None:  # fmt: skip
    assert q.is_contiguous()
    assert lengths.dtype == done.dtype == torch.uint32
    assert lengths.shape == (len(q), 1)
    assert done.numel() >= len(q) * kv_heads
    assert k.shape[1:3] == (page, kv_heads)
    for sequence, length in enumerate(lengths.flatten().tolist()):
        keys, values = (tensor[table[sequence]].flatten(0, 1)[:length] for tensor in (k, v))
        out[sequence] = attend(q[sequence], keys, values, q_scale * q.shape[-1] ** -0.5, causal=False)


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def fused_add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    residual.add_(x)
    x.copy_(rmsnorm(residual, weight, eps))


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.float()).mul(up).to(gate_up.dtype)


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor, q: Tensor, k: Tensor, head: int, angles: Tensor
) -> None:
    cos, sin = angles[positions][:, None].chunk(2, dim=-1)
    for x in (q, k):
        heads = x.view(x.shape[0], -1, head)
        first, second = heads.float().chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
