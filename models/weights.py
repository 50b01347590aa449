"""Weights for a preset: every element is an integer hash of (seed, tensor name, element index).

No transcendental and no random generator of a library takes part, so every machine makes the same
bits. All values are exact in bfloat16, float16 and float32 alike, so the same preset in another
dtype is the same model. Written once as a Hugging Face folder, a preset is opened like any checkpoint.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import xxhash

from models.config import DecoderConfig, find_preset
from models.errors import UserError
from models.hugging_face import hf_config
from models.layout import NUMPY_DTYPES, SAFETENSORS_DTYPES, Array, Shape, fused_layout

SHARD_BYTES = 4 << 30
CHUNK_WORDS = 1 << 13
"""Words hashed at a time: with their temporaries they stay in a core's cache."""

PIECE = 1 << 22
"""Elements that a thread makes and writes at a time."""
THREADS = min(16, os.cpu_count() or 1)

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with its constants as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def hash_bytes(xp: Any, key: int, start: int, words: int) -> Any:
    """Return the uniform bytes of words start, start + 1, ... as uint8 [8 * words] of `xp`, numpy or torch.

    Only wrapping 64-bit products, shifts and xor: the same bits on every device. `key` is signed 64-bit.
    """
    word = xp.arange(start, start + words, dtype=xp.int64)
    word = word * _GAMMA + key
    word = (word ^ _shift_right(word, 30)) * _MIX_1
    word = (word ^ _shift_right(word, 27)) * _MIX_2
    word = word ^ _shift_right(word, 31)
    return word.view(xp.uint8)


def _shift_right(word: Any, bits: int) -> Any:
    """Shift without the sign: signed integers are all that torch and numpy have in common."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def tensor_key(seed: int, name: str) -> int:
    """Return the signed 64-bit key of one tensor's elements."""
    unsigned = xxhash.xxh3_64_intdigest(f"{seed}|{name}".encode())
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def value_table(name: str, shape: Shape) -> Array:
    """Return the float32 value that each of the 256 bytes stands for in a tensor.

    Norm weights lie in [0.75, 1.25), biases within 1/4, matrices within about sqrt(3 / inputs), so
    that a product keeps the scale of its input.
    """
    byte = np.arange(256)
    if name.endswith("norm.weight"):
        return ((byte % 64 + 96) / 128).astype(np.float32)
    odd = 2 * byte - 255
    if name.endswith(".bias"):
        return (odd / 1024).astype(np.float32)
    exponent = 0
    while 4 ** (exponent + 1) * 3 <= 2 * shape[1]:  # the power of two nearest to sqrt(inputs / 3)
        exponent += 1
    return (odd / (256 << exponent)).astype(np.float32)


def pair_table(name: str, shape: Shape, dtype: str) -> Array:
    """Return what every 16 bits stand for: the bits of two elements in `dtype`, as one unsigned integer.

    Look-ups are most of the time, so each makes two elements.
    """
    size = NUMPY_DTYPES[dtype].itemsize
    bits = value_table(name, shape).astype(NUMPY_DTYPES[dtype]).view(f"u{size}").astype(f"u{2 * size}")
    both = np.arange(1 << 16)
    pairs: Array = (bits[both >> 8] << (8 * size)) | bits[both & 255]
    return pairs


def tensor_elements(name: str, shape: Shape, dtype: str, seed: int, first: int, end: int) -> Array:
    """Return the elements `first`, a multiple of 8, to `end` of one preset tensor, flat."""
    pairs, key = pair_table(name, shape, dtype), tensor_key(seed, name)
    words = -(-(end - first) // 8)
    elements = np.empty(4 * words, pairs.dtype)
    for start in range(0, words, CHUNK_WORDS):
        count = min(CHUNK_WORDS, words - start)
        hashed = hash_bytes(np, key, first // 8 + start, count).view(np.uint16)
        elements[4 * start : 4 * (start + count)] = pairs[hashed]
    return elements.view(NUMPY_DTYPES[dtype])[: end - first]


def write_preset(preset: str, dtype: str, folder: Path, seed: int = 0) -> None:
    """Write a preset as a Hugging Face checkpoint folder that appears only when it is whole.

    One process writes and others wait; a folder that is there by then stays. Raises UserError for an
    unknown preset or dtype, and where the disk has no room.
    """
    config = find_preset(preset)
    if dtype not in NUMPY_DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: use one of {', '.join(NUMPY_DTYPES)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "config.json").is_file():
                _write_folder(config, dtype, folder, seed)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): free space there") from error


def _write_folder(config: DecoderConfig, dtype: str, folder: Path, seed: int) -> None:
    """Write under one fixed name, where what a killed process left is found and cleared, and rename."""
    tensors = [part for tensor in fused_layout(config) for part in tensor.parts]
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # before the room is measured
    _check_room(folder, sum(_nbytes(shape, dtype) for _, shape in tensors))
    try:
        unfinished.mkdir()
        _write_shards(unfinished, tensors, dtype, seed)
        (unfinished / "config.json").write_text(json.dumps(hf_config(config, dtype), indent=2))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e6:,.1f} MB but the disk has {free / 1e6:,.1f} MB free: free some, "
            "or set WORKBENCH_CACHE to a folder on another disk"
        )


def _nbytes(shape: Shape, dtype: str) -> int:
    return prod(shape) * NUMPY_DTYPES[dtype].itemsize


def _write_shards(folder: Path, tensors: list[tuple[str, Shape]], dtype: str, seed: int) -> None:
    """Write the tensors in order into shards of at most `SHARD_BYTES` and an index over them."""
    shards: list[list[tuple[str, Shape]]] = [[]]
    size = 0
    for name, shape in tensors:
        if shards[-1] and size + _nbytes(shape, dtype) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += _nbytes(shape, dtype)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / file).open("wb") as stream:
            _write_shard(stream, shard, dtype, seed)
        weight_map.update({name: file for name, _ in shard})
    total = sum(_nbytes(shape, dtype) for _, shape in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_shard(stream: BinaryIO, tensors: list[tuple[str, Shape]], dtype: str, seed: int) -> None:
    """Write one safetensors file piece by piece; the library's own writer wants all tensors in memory."""
    code = next(code for code, name in SAFETENSORS_DTYPES.items() if name == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for name, shape in tensors:
        begin, end = end, end + _nbytes(shape, dtype)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    stream.write(len(text).to_bytes(8, "little") + text)
    stream.flush()
    data = stream.tell()

    def write(piece: tuple[str, Shape, int]) -> None:
        name, shape, first = piece
        elements = tensor_elements(name, shape, dtype, seed, first, min(first + PIECE, prod(shape)))
        at = data + header[name]["data_offsets"][0] + first * elements.itemsize
        _write_at(stream.fileno(), elements.view(np.uint8).data, at)

    pieces = [(name, shape, at) for name, shape in tensors for at in range(0, prod(shape), PIECE)]
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for _ in pool.map(write, pieces):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # a full disk is full for the rest, too


def _write_at(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
