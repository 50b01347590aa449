"""Which device code is for, read from headers that are made here byte by byte."""

import random
import struct

import pytest

from tests.plugins.workbench_keeper import elf_header
from workbench.building.machine_code import Code, find_code, judge
from workbench.building.riegeli import SIGNATURE, decompress, unpack


def gpu(name: str) -> Code:
    return Code("machine code", name)


def fat_binary(*entries: tuple[int, int, bool]) -> bytes:
    """Return a fat binary with entries (kind, capability, own instructions) of compressed payload."""
    body = b""
    for kind, number, own in entries:
        header = struct.pack("<HHIQQIIIIQ", kind, 257, 64, 16, 0, 0, number, 0, 0, own << 20 | 17)
        body += header.ljust(64, b"\0") + bytes(range(16))
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_elf_names_its_processor_or_its_gpu() -> None:
    assert find_code(elf_header("x86_64")) == {gpu("x86_64")}
    assert find_code(b"padding" + elf_header("sm_90") + b"more") == {gpu("sm_90")}


def test_before_cuda_13_the_capability_stood_in_another_byte() -> None:
    old = bytearray(elf_header("sm_90"))
    old[8], old[48:52] = 7, struct.pack("<I", 0x5A055A)
    assert find_code(bytes(old)) == {gpu("sm_90")}


def test_the_assemblers_note_tells_instructions_that_only_one_gpu_has() -> None:
    note = b"ptxas\0-arch sm_90a \0"
    assert find_code(elf_header("sm_90") + note) == {gpu("sm_90a")}
    # A note of the next program, or one that contradicts the header, is not this one's.
    assert find_code(elf_header("sm_80") + elf_header("sm_90") + note) == {gpu("sm_80"), gpu("sm_90a")}
    assert find_code(elf_header("sm_80") + note) == {gpu("sm_80")}


def test_ptx_names_its_target() -> None:
    assert find_code(b"//\n.version 8.0\n.target sm_89\n.address_size 64") == {Code("PTX", "sm_89")}
    assert find_code(b"// a comment on .target sm_89") == frozenset()


def test_a_fat_binary_is_read_by_its_entries_headers() -> None:
    found = find_code(b"host" + fat_binary((2, 80, False), (2, 90, True), (1, 90, False)) + b"host")
    assert found == {gpu("sm_80"), gpu("sm_90a"), Code("PTX", "sm_90")}


@pytest.mark.parametrize("cut", [1, 8, 20, 40])
def test_a_fat_binary_that_is_cut_off_ends_the_search_only(cut: int) -> None:
    whole = fat_binary((2, 80, False))
    assert find_code(whole[: len(whole) - cut]) <= {gpu("sm_80")}


@pytest.mark.parametrize(
    ("codes", "architecture", "way"),
    [
        ([gpu("sm_90")], "sm_90", None),
        ([gpu("sm_90a")], "sm_90", None),
        ([gpu("sm_80")], "sm_89", "by sm_80"),
        ([Code("PTX", "sm_89")], "sm_90", "by PTX sm_89"),
        ([Code("PTX", "sm_80")], "sm_80", "by PTX sm_80"),
        ([Code("PTX", "sm_80"), gpu("sm_90")], "sm_90", None),
        ([gpu("x86_64")], "x86_64", None),
        ([gpu("x86_64"), gpu("sm_100")], "sm_100", None),
    ],
)
def test_code_runs_on_its_own_device_and_on_some_newer(
    codes: list[Code], architecture: str, way: str | None
) -> None:
    verdict = judge([frozenset(codes), frozenset()], architecture)
    assert verdict.fault is None
    assert verdict.way == way


@pytest.mark.parametrize(
    ("files", "architecture", "words"),
    [
        ([[gpu("sm_80")]], "sm_90", "its code is sm_80, which sm_90 does not run"),
        ([[gpu("sm_90a")]], "sm_100", "sm_90a"),
        ([[Code("PTX", "sm_90a")]], "sm_100", "PTX sm_90a"),
        ([[Code("PTX", "sm_90")]], "sm_80", "PTX sm_90"),
        ([[gpu("sm_89")]], "sm_80", "sm_89"),
        ([[gpu("sm_90")], [gpu("sm_80")]], "sm_90", "sm_80"),
        ([[gpu("x86_64")]], "sm_90", "no machine code for a GPU"),
        ([[gpu("aarch64")]], "x86_64", "aarch64"),
        ([[]], "x86_64", "no machine code for a CPU"),
    ],
)
def test_code_for_another_device_is_a_fault(files: list[list[Code]], architecture: str, words: str) -> None:
    assert words in (judge([frozenset(codes) for codes in files], architecture).fault or "")


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def compress(data: bytes) -> bytes:
    """Write Snappy's format with every kind of tag: copies of 8 bytes that were there, else literals."""
    out, at, pending = varint(len(data)), 0, b""
    seen: dict[bytes, int] = {}

    def flush() -> bytes:
        size = len(pending) - 1
        if not pending:
            return b""
        return (bytes([size << 2]) if size < 60 else bytes([62 << 2]) + size.to_bytes(3, "little")) + pending

    while at < len(data):
        before = seen.get(data[at : at + 8]) if len(data) - at >= 8 else None
        seen[data[at : at + 8]] = at
        if before is None:
            pending, at = pending + data[at : at + 1], at + 1
            continue
        offset = at - before
        if offset < 2048:
            copy = bytes([offset >> 8 << 5 | 4 << 2 | 1, offset & 255])
        elif offset < 1 << 16:
            copy = bytes([7 << 2 | 2]) + struct.pack("<H", offset)
        else:
            copy = bytes([7 << 2 | 3]) + struct.pack("<I", offset)
        out, pending, at = out + flush() + copy, b"", at + 8
    return out + flush()


@pytest.mark.parametrize("size", [0, 1, 59, 61, 300, 5000, 80_000])
def test_snappy_is_undone(size: int) -> None:
    chance = random.Random(size)
    words = [chance.randbytes(9) for _ in range(20)]
    data = (b"aaaaaaaaaaaaaaaaaaaa" + chance.randbytes(70_000 if size > 70_000 else 0)) if size else b""
    while len(data) < size:
        data += chance.choice(words)
    assert decompress(compress(data)) == data


@pytest.mark.parametrize("damage", [b"\x05\x00a", b"\x04\x01\x09", b"\x80", b"\x02\x00a\x05\x00"])
def test_damaged_snappy_is_a_value_error(damage: bytes) -> None:
    with pytest.raises(ValueError, match=r"came out|beginning|cut off"):
        decompress(damage)


def container(records: bytes, compressed: bool) -> bytes:
    """Return a Riegeli file of one chunk, with the block headers where they have to be."""
    sizes = varint(len(records))
    if compressed:
        packed = varint(len(sizes)) + compress(sizes)
        chunk = b"s" + varint(len(packed)) + packed + varint(len(records)) + compress(records)
    else:
        chunk = b"\0" + varint(len(sizes)) + sizes + records

    def header(size: int, kind: bytes) -> bytes:
        return bytes(8) + struct.pack("<Q", size) + bytes(8) + kind.ljust(8, b"\0") + bytes(8)

    plain = header(0, b"s") + header(len(chunk), b"r") + chunk
    step = (1 << 16) - 24
    blocks = [plain[at : at + step] for at in range(0, len(plain), step)]
    return b"".join((SIGNATURE + bytes(16) if n == 0 else bytes(24)) + each for n, each in enumerate(blocks))


@pytest.mark.parametrize("compressed", [False, True])
def test_code_is_found_in_containers_within_containers(compressed: bool) -> None:
    noise = random.Random(1).randbytes(100_000)  # longer than a block
    inner = container(noise + elf_header("sm_90") + noise, compressed)
    data = b"before" + container(b"x" + inner, True) + b"after" + elf_header("x86_64")
    assert find_code(data) == {gpu("sm_90"), gpu("x86_64")}
    assert b"".join(unpack(data)) == b"beforex" + noise + elf_header("sm_90") + noise + b"after" + elf_header(
        "x86_64"
    )


def test_a_container_compressed_otherwise_is_a_value_error() -> None:
    data = container(b"abc", False).replace(b"\0\x01\x03abc", b"z\x01\x03abc")
    with pytest.raises(ValueError, match="not known here"):
        find_code(data)
