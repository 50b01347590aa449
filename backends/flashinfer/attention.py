"""FlashInfer's attention: planned on the host by the lengths, run on the device as one PyTorch operator.

A plan is an inspector: it splits the work among the GPU's SMs and copies that to the device, outside any CUDA
graph. B sequences, H query heads, K key/value heads, Dh head size, W the size heads are padded to.
"""

import itertools
import weakref
from typing import Any

import flashinfer
import torch
from torch import Tensor

from backends.contract import POISON
from backends.flashinfer.kernels import PAGE, padded_head
from backends.torch_ops import Cache
from models.config import DecoderConfig

WORKSPACE_BYTES = 128 << 20
"""Scratch memory for the parts of a split cache, as FlashInfer recommends."""


class PagedCache(Cache):
    """Keys and values [B, P * PAGE, K, W]: sequence b owns the P pages from b * P on.

    A program that wrote into a view of pages would copy all of them in and out.
    """

    @classmethod
    def allocate(
        cls, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> "PagedCache":
        """Allocate as many pages as the capacity takes."""
        shape = (batch, page_count(capacity) * PAGE, config.kv_heads, padded_head(config))
        return cls.zeros(config.layers, shape, dtype, device)

    def poison(self, length: int) -> None:
        """Overwrite positions >= length."""
        for tensor in (*self.keys, *self.values):
            tensor[:, length:] = POISON


def pages_of(cached: Tensor) -> Tensor:
    """View keys or values as pages [B * P, PAGE, K, W]."""
    return cached.view(-1, PAGE, *cached.shape[2:])


def page_count(length: int) -> int:
    """Count the pages that so many positions take."""
    return -(-length // PAGE)


def page_table(batch: int, pages: int, device: torch.device | None = None) -> Tensor:
    """Give every sequence its own page numbers, int32 [B, P]; on the host unless a device is named."""
    return torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)


class Planned:
    """A wrapper of FlashInfer's; it runs what was planned last."""

    wrapper: Any
    in_place = True
    """Whether a plan is written where the last one was, so that a CUDA graph of the run reads it."""
    planned = 0
    """Pages that decode is planned for; 0 before the first plan, and where nothing is planned by pages."""

    def __init__(self, config: DecoderConfig, batch: int, dtype: torch.dtype, workspace: Tensor) -> None:
        self.config, self.batch, self.dtype, self.workspace = config, batch, dtype, workspace
        self.width = padded_head(config)
        self.copied: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.handle = next(_handles)
        _planned[self.handle] = self

    def host(self, *values: int) -> Tensor:
        """Make a host tensor that can be copied while the host goes on."""
        return torch.tensor(values, dtype=torch.int32, pin_memory=True)

    def device(self, *values: int) -> Tensor:
        """Make a buffer on the device."""
        return torch.tensor(values, dtype=torch.int32, device=self.workspace.device)

    def settle(self, *arguments: Any, **settings: Any) -> None:
        """Plan, once the device has copied the last plan out of the host buffer that this one fills."""
        self.copied.synchronize()
        scale = self.config.head_dim**-0.5  # of the head as it is, not as it is padded
        self.wrapper.plan(*arguments, sm_scale=scale, q_data_type=self.dtype, **settings)
        self.copied.record()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [N, H, W] to k and v; returns [N, H, W]."""
        raise NotImplementedError


_handles = itertools.count()
_planned: "weakref.WeakValueDictionary[int, Planned]" = weakref.WeakValueDictionary()


@torch.library.custom_op("workbench::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, handle: int) -> Tensor:
    """Run what is planned under the handle."""
    return _planned[handle].run(q, k, v)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, handle: int) -> Tensor:  # noqa: ARG001 (the operator's signature)
    return q.new_empty(q.shape)


class PagedDecode(Planned):
    """One new token a sequence over a cache of pages; planned by the number of pages in use."""

    def __init__(
        self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, workspace: Tensor
    ) -> None:
        super().__init__(config, batch, dtype, workspace)
        pages = page_count(capacity)
        device = workspace.device
        self.table = page_table(batch, pages, device)
        filled = torch.arange(capacity, dtype=torch.int32, device=device) % PAGE + 1
        self.filled = filled[:, None].repeat(1, batch)  # [C, B]: of the last page, by position
        self.last = self.device(*[1] * batch)
        # With a block for every SM already, splitting a sequence's cache only adds the joining of its parts.
        self.whole = batch * config.kv_heads >= torch.cuda.get_device_properties(device).multi_processor_count
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=self.device(*[0] * (batch + 1)),
            paged_kv_indices_buffer=torch.zeros_like(self.table.flatten()),
            paged_kv_last_page_len_buffer=self.last,
            backend="fa2",
        )

    def plan(self, length: int) -> None:
        """Plan for so many positions, the newest included; the plan of an equal number of pages is kept."""
        pages = page_count(length)
        if pages == self.planned:
            return
        config = self.config
        self.settle(
            self.host(*(sequence * pages for sequence in range(self.batch + 1))),
            self.table[:, :pages].flatten(),
            self.host(*[PAGE] * self.batch),  # `advance` sets it
            config.heads,
            config.kv_heads,
            self.width,
            PAGE,
            disable_split_kv=self.whole,
        )
        self.planned = pages

    def advance(self, position: Tensor) -> None:
        """Set how much of the last page is filled once the token at `position` [1] is there; in the graph."""
        torch.index_select(self.filled, 0, position, out=self.last.view(1, -1))

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B, H, W] to pages k and v [B * P, PAGE, K, W]."""
        out: Tensor = self.wrapper.run(q, (k, v))
        return out


class RaggedPrefill(Planned):
    """T tokens a sequence that see one another only, causally."""

    def __init__(
        self,
        config: DecoderConfig,
        batch: int,
        length: int,
        dtype: torch.dtype,
        workspace: Tensor,
        kernel: str,
    ) -> None:
        super().__init__(config, batch, dtype, workspace)
        self.starts = self.host(*(sequence * length for sequence in range(batch + 1)))
        self.wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=self.device(*[0] * (batch + 1)),
            kv_indptr_buf=self.device(*[0] * (batch + 1)),
            backend=kernel,
        )

    def plan(self) -> None:
        """Plan anew, as for every prompt: nobody knows its length before it comes."""
        config = self.config
        heads = (config.heads, config.kv_heads, self.width)
        self.settle(self.starts, self.starts, *heads, causal=True)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B * T, H, W] to k and v [B * T, K, W]."""
        out: Tensor = self.wrapper.run(q, k, v)
        return out
