"""The safetensors files of a checkpoint folder: found, opened by their headers, read in pieces."""

import errno
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from models.errors import UserError, one_line
from models.layout import Array, Shape

INDEX = "model.safetensors.index.json"
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


def find_shards(folder: Path) -> list[Path]:
    """List the files of a folder; raises UserError if it has none that can be read."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if (folder / INDEX).is_file():
        return sorted({folder / shard for shard in _read_index(folder).values()})
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read: convert the checkpoint "
            "with transformers, from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise UserError(f"{folder} has neither model.safetensors nor {INDEX}: download or save it again")


def _read_index(folder: Path) -> dict[str, str]:
    """Return the index's tensor name -> shard file name."""
    path = folder / INDEX
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if not weight_map or not all(_is_shard_name(shard) for shard in weight_map.values()):
            raise ValueError("weight_map does not name safetensors files of this folder")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "no weight_map" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path} is damaged ({reason}): download or save it again") from error
    return cast(dict[str, str], weight_map)


def _is_shard_name(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors")


def check_index(folder: Path, headers: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse an index that disagrees with its shards."""
    if folder / "model.safetensors" in headers:
        return
    weight_map = _read_index(folder)
    for name, shard in weight_map.items():
        if name not in headers[folder / shard]:
            raise UserError(
                f"{folder / INDEX} lists {name} in {shard}, which has no such tensor: save it again"
            )
    for path, header in headers.items():
        for name in header:
            if weight_map.get(name) != path.name:
                raise UserError(f"{path} holds {name}, which {INDEX} does not list there: save it again")


def open_shard(path: Path) -> Any:
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
    return UserError(f"{path} is damaged ({one_line(error)}): download or save it again")


def read_header(path: Path) -> dict[str, Stored]:
    """Return what one file holds, by name; raises UserError if it is missing or damaged."""
    with open_shard(path):
        pass  # refuses a header that is none, or that disagrees with the file's length
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def read_into(array: Array, stored: Stored) -> None:
    """Fill an array with a stored tensor's bytes; raises UserError if they are not there."""
    content = as_bytes(array).data
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


def as_bytes(array: Array) -> npt.NDArray[np.uint8]:
    """Look at an array as its bytes; one that does not lie in one piece is copied."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
