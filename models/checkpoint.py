"""Hugging Face safetensors folders, opened by their headers and read one fused tensor at a time."""

import difflib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError, safe_open

from models.config import DecoderConfig
from models.errors import UserError
from models.hugging_face import read_config
from models.layout import (
    EMBEDDING,
    HEAD,
    NUMPY_DTYPES,
    SAFETENSORS_DTYPES,
    Array,
    FusedTensor,
    Shape,
    fused_layout,
)

T = TypeVar("T")

_INDEX = "model.safetensors.index.json"
_TIED_ROWS = 4096
PIECE_BYTES = 8 << 20
READERS = min(8, os.cpu_count() or 1)
"""Threads that read a tensor, a piece at a time: a GPU takes weights faster than one thread copies them."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, as its file's header has it."""

    path: Path
    dtype: str
    """As safetensors names it."""
    shape: Shape
    offset: int
    """Of its first byte in the file."""


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
        digest = self._start_digest()
        for tensor, array in self._read():
            _update(digest, tensor, array, self.dtype)
            yield tensor.name, array
            del array  # before the next one is read
        self._checksum = digest.hexdigest()

    def checksum(self) -> str:
        """Return the xxh3-128 of the whole model; free after one full reading.

        It covers the configuration, then every tensor's name, dtype, shape and bytes: rope, norm epsilon
        and the split into heads change what is computed but no tensor.
        """
        if self._checksum is None:
            digest = self._start_digest()
            for tensor, array in self._read():
                _update(digest, tensor, array, self.dtype)
                del array
            self._checksum = digest.hexdigest()
        return self._checksum

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned for `key` the first time: weights are placed on a device once."""
        if key not in self._memo:
            self._memo[key] = make()
        return cast(T, self._memo[key])

    def _start_digest(self) -> Any:
        return xxhash.xxh3_128(json.dumps(asdict(self.config), sort_keys=True).encode())

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
                _read_into(part, stored)
            else:
                values = np.empty(shape, NUMPY_DTYPES[SAFETENSORS_DTYPES[stored.dtype]])
                _read_into(values, stored)
                part[...] = _convert(values, self.dtype, name)
                del values  # before the next part is read
        return joined

    def _check_tied(self) -> None:
        """Refuse a head that differs from the embedding it is said to be tied to."""
        if not self.config.tied_embeddings or HEAD not in self._stored:
            return
        with _open(self._stored[EMBEDDING].path) as one, _open(self._stored[HEAD].path) as other:
            tables = [(name, shard.get_slice(name)) for name, shard in ((EMBEDDING, one), (HEAD, other))]
            for row in range(0, self.config.vocab_size, _TIED_ROWS):
                end = min(row + _TIED_ROWS, self.config.vocab_size)
                rows = [_convert(table[row:end], self.dtype, name) for name, table in tables]
                if not np.array_equal(_bytes(rows[0]), _bytes(rows[1])):
                    raise UserError(
                        f"{self._stored[HEAD].path}: {HEAD} differs from {EMBEDDING} although config.json "
                        "has tie_word_embeddings: set it to false or save the checkpoint again"
                    )


def _read_into(array: Array, stored: Stored) -> None:
    """Fill an array with a stored tensor's bytes; raises UserError if they are not there."""
    content = _bytes(array).data
    try:
        with stored.path.open("rb", buffering=0) as file:

            def read(at: int) -> None:
                end = min(at + PIECE_BYTES, len(content))
                while at < end:
                    count = os.preadv(file.fileno(), [content[at:end]], stored.offset + at)
                    if not count:
                        raise OSError(errno.EIO, "it has become shorter")
                    at += count

            starts = range(0, len(content), PIECE_BYTES)
            if len(starts) == 1:
                read(0)
            else:
                with ThreadPoolExecutor(READERS) as pool:
                    list(pool.map(read, starts))
    except FileNotFoundError:
        raise _missing(stored.path) from None
    except OSError as error:
        raise _damaged(stored.path, error) from error


def _update(digest: Any, tensor: FusedTensor, array: Array, dtype: str) -> None:
    digest.update(f"{tensor.name}|{dtype}|{tensor.shape}|".encode())
    digest.update(_bytes(array))


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _convert(array: Array, dtype: str, name: str) -> Array:
    """Round to `dtype`, nearest even; raises UserError for a finite value that it cannot hold."""
    wanted = NUMPY_DTYPES[dtype]
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(wanted)
    if dtype == "float16" and np.isinf(rounded).sum() > np.isinf(array).sum():
        raise UserError(f"{name} has values beyond float16: use --dtype bfloat16 or float32")
    return rounded


def open_checkpoint(folder: Path, dtype: str) -> Weights:
    """Open a checkpoint folder to be read as `dtype`; checks names, shapes and types by the headers alone.

    Raises UserError naming the file or tensor that is damaged, missing, extra, misshapen or of another type.
    """
    if dtype not in NUMPY_DTYPES:
        near = difflib.get_close_matches(dtype, NUMPY_DTYPES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown dtype {dtype!r}: did you mean {near!r}?")
    config = read_config(folder)
    headers = {path: _read_header(path) for path in _find_shards(folder)}
    _check_index(folder, headers)
    tensors = {name: stored for header in headers.values() for name, stored in header.items()}
    _check_tensors(config, folder, tensors)
    return Weights(config, dtype, folder, tensors)


def _find_shards(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if (folder / _INDEX).is_file():
        return sorted({folder / shard for shard in _read_index(folder).values()})
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read: convert the checkpoint "
            "with transformers, from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise UserError(f"{folder} has neither model.safetensors nor {_INDEX}: download or save it again")


def _read_index(folder: Path) -> dict[str, str]:
    """Return the index's tensor name -> shard file name."""
    path = folder / _INDEX
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if not weight_map or not all(_is_shard_name(shard) for shard in weight_map.values()):
            raise ValueError("weight_map does not name safetensors files of this folder")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "no weight_map" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}): download or save it again") from error
    return cast(dict[str, str], weight_map)


def _is_shard_name(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors")


def _check_index(folder: Path, headers: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse an index that disagrees with its shards."""
    if folder / "model.safetensors" in headers:
        return
    weight_map = _read_index(folder)
    for name, shard in weight_map.items():
        if name not in headers[folder / shard]:
            raise UserError(
                f"{folder / _INDEX} lists {name} in {shard}, which has no such tensor: save it again"
            )
    for path, header in headers.items():
        for name in header:
            if weight_map.get(name) != path.name:
                raise UserError(f"{path} holds {name}, which {_INDEX} does not list there: save it again")


def _open(path: Path) -> Any:
    """Open one safetensors file, mapped; raises UserError if it is missing or damaged."""
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise _missing(path) from None
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _missing(path: Path) -> UserError:
    return UserError(f"{path} is missing: download or save the checkpoint again")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({' '.join(str(error).split())}): download or save it again")


def _read_header(path: Path) -> dict[str, Stored]:
    """Return what one file holds, by name."""
    with _open(path):
        pass  # refuses a header that is none, or that disagrees with the file's length
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


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
