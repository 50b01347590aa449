"""Which devices the code in a file is for, by the headers of ELF, CUDA's fat binaries and PTX. Pure."""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.building.riegeli import unpack

ELF, FAT_BINARY = b"\x7fELF\x02\x01", struct.pack("<I", 0xBA55ED50)
PTX = re.compile(rb"^\s*\.target\s+sm_(\d+)([a-z]?)", re.MULTILINE)
CUDA = 190
"""What ELF calls a GPU of NVIDIA."""
HOSTS = {62: "x86_64", 183: "aarch64"}
"""What ELF calls the processors of hosts."""


@dataclass(frozen=True, order=True)
class Code:
    """What one program is made for."""

    kind: str
    """`machine code`, or `PTX`, of which the driver makes machine code when it loads it."""
    architecture: str
    """`sm_90`, `sm_90a`, ... or a host's `x86_64`."""

    def __str__(self) -> str:
        """Write `PTX sm_89`; of machine code the architecture alone."""
        return self.architecture if self.kind == "machine code" else f"{self.kind} {self.architecture}"

    @property
    def on_gpu(self) -> bool:
        """Whether it is for a GPU."""
        return self.architecture.startswith("sm_")

    def is_for(self, architecture: str) -> bool:
        """Tell whether it was made for this very architecture, be it with what only that one has."""
        return self.architecture.rstrip("af") == architecture

    def runs_on(self, architecture: str) -> bool:
        """Tell whether a device runs it: machine code within its major version, PTX on all newer ones."""
        if not self.on_gpu or self.architecture.endswith("a"):  # made for one, and for nothing newer
            return self.is_for(architecture)
        own, wanted = (
            int(name.removeprefix("sm_").rstrip("f")) for name in (self.architecture, architecture)
        )
        return own <= wanted and (self.kind == "PTX" or own // 10 == wanted // 10)


def find_code(data: bytes) -> frozenset[Code]:
    """Find all machine code and PTX in a file; raises ValueError where a container in it is damaged."""
    found: set[Code] = set()
    for part in unpack(data):
        found.update(_in_elf(part))
        found.update(_in_fat_binaries(part))
        found.update(Code("PTX", f"sm_{(number + suffix).decode()}") for number, suffix in PTX.findall(part))
    return frozenset(found)


@dataclass(frozen=True)
class Verdict:
    """Whether the code in an engine's files runs on the architecture that it is for."""

    found: tuple[str, ...] = ()
    """All code there is."""
    way: str | None = None
    """By what other code than its own the device runs it: `by PTX sm_89`."""
    fault: str | None = None
    """Why it does not run there."""


def inspect(paths: Sequence[Path], architecture: str) -> Verdict:
    """Look for code in an engine's files; raises OSError."""
    try:
        codes = [find_code(path.read_bytes()) for path in paths]
    except ValueError as error:
        return Verdict(fault=f"its code cannot be read: {error}")
    found = tuple(sorted({str(code) for each in codes for code in each}))
    return replace(judge(codes, architecture), found=found)


def judge(files: Sequence[frozenset[Code]], architecture: str) -> Verdict:
    """Tell whether an architecture runs the code of every file; one file at least must have some."""
    on_gpu = architecture.startswith("sm_")
    relevant = [own for codes in files if (own := [code for code in sorted(codes) if code.on_gpu == on_gpu])]
    if not relevant:
        return Verdict(fault=f"there is no machine code for a {'GPU' if on_gpu else 'CPU'} in it")
    ways: dict[str, None] = {}
    for codes in relevant:
        fitting = [code for code in codes if code.runs_on(architecture)]
        if not fitting:
            return Verdict(
                fault=f"its code is {', '.join(map(str, codes))}, which {architecture} does not run"
            )
        best = min(fitting, key=lambda code: (code.kind == "PTX", not code.is_for(architecture)))
        if best.kind == "PTX" or not best.is_for(architecture):
            ways[f"by {best}"] = None
    return Verdict(way=", ".join(ways) or None)


def _in_elf(data: bytes) -> Iterator[Code]:
    for found in re.finditer(ELF, data):
        header = data[found.start() : found.start() + 52]
        if len(header) < 52:
            return
        machine, flags = struct.unpack("<H28xI", header[18:])
        if machine == CUDA:
            # From CUDA 13 on (version 8) the capability is in the second byte, before in the first.
            number = flags >> 8 & 255 if header[8] >= 8 else flags & 255
            yield Code("machine code", _exact(f"sm_{number}", data, found.end()))
        elif machine in HOSTS:
            yield Code("machine code", HOSTS[machine])


def _exact(architecture: str, data: bytes, start: int) -> str:
    """Add the letter of an architecture's own instructions, which only the assembler's note names."""
    end = data.find(ELF, start)
    note = re.search(rb"-arch (sm_\d+[a-z]?)", data[start : end if end >= 0 else None])
    noted = note[1].decode() if note else ""
    return noted if noted.rstrip("af") == architecture else architecture


def _in_fat_binaries(data: bytes) -> Iterator[Code]:
    """Read the entries' own headers: what they hold may be compressed."""
    at = data.find(FAT_BINARY)
    while at >= 0:
        header_size, size = struct.unpack_from("<HQ", data.ljust(at + 16, b"\0"), at + 6)
        entry, end = at + header_size, min(at + header_size + size, len(data))
        while entry + 64 <= end:
            kind, entry_header, payload = struct.unpack_from("<H2xIQ", data, entry)
            number, flags = struct.unpack_from("<I8xQ", data, entry + 28)
            if kind in (1, 2) and number:
                suffix = "a" if flags & 1 << 20 else ""
                yield Code("PTX" if kind == 1 else "machine code", f"sm_{number}{suffix}")
            entry += max(entry_header, 1) + payload
        at = data.find(FAT_BINARY, at + 1)
