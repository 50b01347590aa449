"""A backend of another distribution whose artefacts can be kept: `keeper[fault=disk]`, `keeper[tune=1]`.

It compiles nothing: a program is the header of an ELF file for the target, as machine code would have it.
"""

import os
import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

from backends.contract import (
    ANY_NUMBER,
    Artefact,
    Engine,
    MadeFor,
    Option,
    Probe,
    Shapes,
    Target,
    Unsupported,
)
from backends.null import NullEngine
from models.checkpoint import Weights
from models.config import DecoderConfig

FAULTS = ("none", "disk", "nvcc", "exception", "wrong-gpu", "source", "hang")


class Keeper:
    name = "keeper"
    machine_code = True
    made_for: MadeFor = "card"
    options: Mapping[str, Option] = {
        "fault": Option("what goes wrong", FAULTS),
        "tune": Option("how much it times", ANY_NUMBER),
    }

    def probe(self) -> Probe:
        return Probe(versions={"keeper": version()}, devices=("cpu",), dtypes=("float32",))

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:
        if options.get("fault") == "nvcc":
            raise Unsupported("there is no nvcc here: put CUDA's on the path")
        if target.card == "b200":
            raise Unsupported("the compiler knows no b200")
        return {"keeper": version()}

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        with Path(os.environ["KEEPER_LOG"]).open("a") as log:
            log.write(f"{target.architecture}\n")
        fault = options.get("fault")
        if fault == "exception":
            raise RuntimeError("the third pass is broken")
        if fault == "hang":
            time.sleep(600)
        time.sleep(float(os.environ.get("KEEPER_SECONDS", "0")))
        architecture = "sm_75" if fault == "wrong-gpu" else target.architecture
        code = b"// CUDA source" if fault == "source" else elf_header(architecture)
        untuned = target.card is not None and target.tuning is None
        return Artefact(config, shapes, target, options, "own", "stock", code, untuned=untuned)

    def save(self, artefact: Artefact, folder: Path) -> None:
        if artefact.options.get("fault") == "disk":
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder / "code"))
        (folder / "code").write_bytes(artefact.payload)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        return replace(artefact, payload=(folder / "code").read_bytes())

    def tunes(self, target: Target, options: Mapping[str, str]) -> bool:
        return "tune" in options

    def tune(
        self,
        config: DecoderConfig,
        shapes: Shapes,
        target: Target,
        options: Mapping[str, str],
        folder: Path,
    ) -> None:
        with Path(os.environ["KEEPER_LOG"]).open("a") as log:
            log.write("tuned\n")
        (folder / "choices").write_text("kernel 7")
        (folder / "seconds").write_text(str(time.perf_counter()))

    def choices(self, folder: Path, target: Target, options: Mapping[str, str]) -> str:
        return (folder / "choices").read_text()

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        return NullEngine(artefact)


def version() -> str:
    return os.environ.get("KEEPER_VERSION", "1.0")


def elf_header(architecture: str) -> bytes:
    """Return the header of an ELF file for a GPU, as CUDA 13 writes it, or for a host."""
    on_gpu = architecture.startswith("sm_")
    machine, number = (190, int(architecture.removeprefix("sm_"))) if on_gpu else (62, 0)
    identity = b"\x7fELF\x02\x01\x01\x41\x08".ljust(16, b"\0")
    return (identity + struct.pack("<HHIQQQI", 2, machine, 1, 0, 0, 0, number << 8)).ljust(64, b"\0")
