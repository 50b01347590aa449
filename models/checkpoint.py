"""Checkpoints as Hugging Face writes them, checked by their headers, read one fused tensor at a time."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import xxhash

from models.config import DecoderConfig
from models.errors import UserError
from models.hugging_face import UNQUANTIZED, read_config
from models.layout import (
    EMBEDDING,
    HEAD,
    NUMPY_DTYPES,
    SAFETENSORS_DTYPES,
    Array,
    FusedTensor,
    fused_layout,
)
from models.shards import Stored, as_bytes, check_index, find_shards, open_shard, read_header, read_into

T = TypeVar("T")

_TIED_ROWS = 4096


class Weights:
    """The checked weights of one checkpoint folder, read from disk only as they are asked for."""

    def __init__(self, config: DecoderConfig, dtype: str, folder: Path, stored: Mapping[str, Stored]) -> None:
        self.config = config
        self.dtype = dtype
        self.folder = folder
        self.layout = fused_layout(config)
        self.nbytes = sum(prod(each.shape) for each in self.layout) * NUMPY_DTYPES[dtype].itemsize
        self._stored = stored
        self._memo: dict[str, Any] = {}
        self._checksum: str | None = None

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) in the canonical order, each array fresh, writable and in `dtype`.

        A caller that keeps none of them holds two tensors in memory at a time. Raises UserError naming
        a tensor whose values cannot be used.
        """
        digest: Any = xxhash.xxh3_128(json.dumps(asdict(self.config), sort_keys=True).encode())
        for tensor, array in self._read():
            digest.update(f"{tensor.name}|{self.dtype}|{tensor.shape}|".encode())
            digest.update(as_bytes(array))
            yield tensor.name, array
            del array  # before the next one is read
        self._checksum = digest.hexdigest()

    def checksum(self) -> str:
        """Return the xxh3-128 of the whole model; free after one full reading.

        It covers the configuration, then every tensor's name, dtype, shape and bytes: rope, norm epsilon
        and the split into heads change what is computed but no tensor.
        """
        if self._checksum is None:
            for _ in self.arrays():
                pass
        assert self._checksum is not None
        return self._checksum

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned for `key` the first time: weights are placed on a device once."""
        if key not in self._memo:
            self._memo[key] = make()
        return cast(T, self._memo[key])

    def _read(self) -> Iterator[tuple[FusedTensor, Array]]:
        """Yield every fused tensor with its values, the next one being read while the caller is at work."""
        self._check_tied()
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._join, self.layout[0])]
            for tensor, following in zip(self.layout, (*self.layout[1:], None), strict=True):
                array = coming.pop().result()
                if following is not None:
                    coming.append(ahead.submit(self._join, following))
                yield tensor, array
                del array  # before the one after the next is read

    def _join(self, tensor: FusedTensor) -> Array:
        """Read a tensor's parts into one array, one after the other along the first axis."""
        joined = np.empty(tensor.shape, NUMPY_DTYPES[self.dtype])
        end = 0
        for name, shape in tensor.parts:
            begin, end = end, end + shape[0]
            part, stored = joined[begin:end], self._stored[name]
            if SAFETENSORS_DTYPES[stored.dtype] == self.dtype:
                read_into(part, stored)
            else:
                values = np.empty(shape, NUMPY_DTYPES[SAFETENSORS_DTYPES[stored.dtype]])
                read_into(values, stored)
                part[...] = _convert(values, self.dtype, name)
                del values  # before the next part is read
        return joined

    def _check_tied(self) -> None:
        """Refuse a head that differs from the embedding it is said to be tied to."""
        if not self.config.tied_embeddings or HEAD not in self._stored:
            return
        with open_shard(self._stored[EMBEDDING].path) as one, open_shard(self._stored[HEAD].path) as other:
            tables = [(name, shard.get_slice(name)) for name, shard in ((EMBEDDING, one), (HEAD, other))]
            for row in range(0, self.config.vocab_size, _TIED_ROWS):
                end = min(row + _TIED_ROWS, self.config.vocab_size)
                rows = [_convert(table[row:end], self.dtype, name) for name, table in tables]
                if not np.array_equal(as_bytes(rows[0]), as_bytes(rows[1])):
                    raise UserError(
                        f"{self._stored[HEAD].path}: {HEAD} differs from {EMBEDDING} although config.json "
                        "has tie_word_embeddings: set it to false or save the checkpoint again"
                    )


def _convert(array: Array, dtype: str, name: str) -> Array:
    """Round to `dtype`, nearest even; raises UserError for a finite value that it cannot hold."""
    wanted = NUMPY_DTYPES[dtype]
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(wanted)
    if np.isinf(rounded).sum() > np.isinf(array).sum():
        wider = "bfloat16 or float32" if dtype == "float16" else "float32"
        raise UserError(f"{name} has values beyond {dtype}: use --dtype {wider}")
    return rounded


def open_checkpoint(folder: Path, dtype: str) -> Weights:
    """Open a checkpoint folder to be read as `dtype`; checks names, shapes and types by the headers alone.

    Raises UserError naming the file or tensor that is damaged, missing, extra, misshapen or of another type.
    """
    if dtype not in NUMPY_DTYPES:
        near = difflib.get_close_matches(dtype, NUMPY_DTYPES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown dtype {dtype!r}: did you mean {near!r}?")
    config = read_config(folder)
    headers = {path: read_header(path) for path in find_shards(folder)}
    check_index(folder, headers)
    tensors = {name: stored for header in headers.values() for name, stored in header.items()}
    _check_tensors(config, folder, tensors)
    return Weights(config, dtype, folder, tensors)


def _check_tensors(
    config: DecoderConfig,
    folder: Path,
    tensors: Mapping[str, Stored],
) -> None:
    """Hold the tensors found against those the configuration needs."""
    needed = {name: shape for tensor in fused_layout(config) for name, shape in tensor.parts}
    allowed = dict(needed)
    if config.tied_embeddings:
        allowed[HEAD] = needed[EMBEDDING]
    for name in needed:
        if name not in tensors and name.removesuffix("weight") + "qweight" in tensors:
            raise UserError(f"{folder} is quantized (it has qweight), not supported yet: {UNQUANTIZED}")
        if name not in tensors:
            raise UserError(f"{folder} has no tensor {name}, which its config.json needs: download it again")
    for name, stored in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):  # old checkpoints carry the rope table
            continue
        if name not in allowed:
            raise UserError(
                f"{stored.path}: tensor {name} is not part of a {config.family} model as configured"
            )
        if stored.dtype not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{stored.path}: {name} is stored as {stored.dtype}; "
                f"supported are {', '.join(SAFETENSORS_DTYPES)}"
            )
        if stored.shape != allowed[name]:
            raise UserError(
                f"{stored.path}: {name} has shape {list(stored.shape)}, "
                f"config.json asks for {list(allowed[name])}"
            )
