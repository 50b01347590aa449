"""Unpack Riegeli records, the container that XLA saves executables in, as far as it uses the format.

A file is blocks of 64 KiB, each with a header of 24 bytes, and in them chunks: a header of 40 bytes, then
data. A chunk of records (type `r`) begins with the kind of its compression: none, or Snappy.
"""

from collections.abc import Iterator

SIGNATURE = bytes.fromhex("83af70d10d884a3f")
"""The hash that every file begins with."""
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40


def unpack(data: bytes) -> Iterator[bytes]:
    """Yield what is outside of containers, and the records within, likewise; raises ValueError if damaged."""
    start, at = 0, data.find(SIGNATURE)
    while at >= 0:
        yield data[start:at]
        chunks, size = _read_container(data[at:])
        for records in chunks:
            yield from unpack(records)
        start = at + max(size, len(SIGNATURE))
        at = data.find(SIGNATURE, start)
    yield data[start:]


def _read_container(data: bytes) -> tuple[list[bytes], int]:
    """Return the records of each chunk, and the bytes of the whole container."""
    plain = b"".join(data[at + BLOCK_HEADER : at + BLOCK] for at in range(0, len(data), BLOCK))
    chunks, at = [], 0
    while at + CHUNK_HEADER <= len(plain):
        header = plain[at : at + CHUNK_HEADER]
        end = at + CHUNK_HEADER + int.from_bytes(header[8:16], "little")
        if end > len(plain):
            break  # the container has ended, and what follows is somebody else's
        if header[24:25] == b"r":
            chunks.append(_read_records(plain[at + CHUNK_HEADER : end]))
        at = end
    blocks = -(-at // (BLOCK - BLOCK_HEADER))
    return chunks, at + blocks * BLOCK_HEADER


def _read_records(chunk: bytes) -> bytes:
    """Return the values of a chunk's records on end."""
    kind = chunk[:1]
    sizes, at = _varint(chunk, 1)
    values = chunk[at + sizes :]
    if kind == b"\0":
        return values
    if kind != b"s":
        raise ValueError(f"records are compressed in a way that is not known here: {kind!r}")
    _, at = _varint(values, 0)
    return decompress(values[at:])


def decompress(data: bytes) -> bytes:
    """Undo Snappy's raw format; raises ValueError if the data are damaged."""
    expected, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, length = tag & 3, (tag >> 2) + 1
        if kind == 0:  # a literal, whose length may stand in up to four bytes of its own
            extra = max(length - 60, 0)
            if extra:
                length = int.from_bytes(data[at : at + extra], "little") + 1
            out += data[at + extra : at + extra + length]
            at += extra + length
            continue
        if kind == 1:  # a copy of 4 to 11 bytes from an offset of 11 bits
            length = (tag >> 2 & 7) + 4
            offset, at = (tag >> 5) << 8 | data[at], at + 1
        else:  # a copy from an offset of two or four bytes
            width = 2 if kind == 2 else 4
            offset, at = int.from_bytes(data[at : at + width], "little"), at + width
        if not 0 < offset <= len(out):
            raise ValueError("a copy points before the beginning")
        period = bytes(out[-offset:][:length])
        out += (period * (length // len(period) + 1))[:length]  # it may run into what it writes
    if len(out) != expected:
        raise ValueError(f"{len(out)} bytes came out of the {expected} that were put in")
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; returns it with where the next begins."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("a number is cut off")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
