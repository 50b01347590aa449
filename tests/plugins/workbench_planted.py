"""A backend of another distribution that goes wrong as it is told: `planted[fault=kill,at=load,batch=2]`.

It computes nothing and needs no framework; the gate is told to pass it, since what is tested is what the
worker and its parent make of the fault.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from backends.null import NullEngine
from models.checkpoint import Weights
from models.config import DecoderConfig
from models.errors import UserError
from workbench import measure
from workbench.checking.judgement import Verdict


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def fault() -> NoReturn:
        raise error

    return fault


def hang() -> None:
    time.sleep(600)


def hang_with_child() -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["PLANTED_FILE"]).write_text(f"{os.getpid()} {child.pid}")
    hang()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    os.abort()


def write_to_every_descriptor() -> None:
    print('{"event": "done"}\n\x00garbage', flush=True)
    print("noise", file=sys.stderr, flush=True)
    os.write(1, b'\xff\xfe{"event": "row"}\n')
    subprocess.run(["echo", "from a child"], check=True)


def write_half_a_line() -> None:
    pipe = int(sys.argv[sys.argv.index("--pipe") + 1])
    os.write(pipe, b'not json\n[1]\n{"event": "stage"}\n{"event": "row", "resu')
    os._exit(3)


FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "exception": raising(RuntimeError("compiler raised:\n  the third pass is broken\nlong story")),
    "memory": raising(MemoryError("Unable to allocate 9 TiB")),
    "cuda-memory": raising(RuntimeError("CUDA error: out of memory")),
    "unsupported": raising(Unsupported("batch of three is odd")),
    "user": raising(UserError("your checkpoint is damaged")),
    "sys-exit": raising(SystemExit(0)),
    "kill": kill,
    "abort": abort,
    "exit": lambda: os._exit(0),
    "hang": hang,
    "hang-with-child": hang_with_child,
    "garbage": write_to_every_descriptor,
    "half": write_half_a_line,
    "wrong": lambda: None,
}


PLACES = ("gate", "after")
"""Where a fault in a check is: before the rows are timed, or after."""


class Planted:
    name = "planted"
    options: Mapping[str, Option] = {
        "fault": Option("what goes wrong", tuple(FAULTS)),
        "at": Option("where", ("build", "load", "gate", "time", "after", "trace")),
    }

    def probe(self) -> Probe:
        return Probe(versions={"planted": "1.0"}, devices=("cpu",), dtypes=("float32",))

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        measure.verify = verify  # type: ignore[assignment]
        measure.load_golden = lambda path: None  # type: ignore[assignment,return-value]
        artefact = Artefact(config, shapes, target, options, "own", "stock")
        plant_cupti(artefact)
        go_wrong(artefact, "build")
        return artefact

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        go_wrong(artefact, "load")
        return PlantedEngine(artefact)


class PlantedEngine(NullEngine):
    """Goes wrong at the first chained step of the timing, or when its logits are asked for."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__(artefact)
        self.artefact = artefact
        self.checks = 0

    def rewind(self, length: int) -> None:
        go_wrong(self.artefact, "time")

    def decode(self) -> None:
        time.sleep(1e-4)

    def logits(self) -> np.ndarray:
        go_wrong(self.artefact, PLACES[min(self.checks, 1)])
        self.checks += 1
        return super().logits()


def verify(engine: PlantedEngine, golden: object, batch: int, progress: object = None) -> Verdict:
    """Pass every engine but those that are told to be wrong, here or after timing."""
    place = PLACES[min(engine.checks, 1)]
    engine.logits()
    if is_told(engine.artefact, "wrong", place):
        return Verdict(False, "skips a layer", 7.0)
    return Verdict(True, None, 1.0)


def go_wrong(artefact: Artefact, place: str) -> None:
    fault = artefact.options.get("fault", "none")
    if is_told(artefact, fault, place):
        FAULTS[fault]()


def is_told(artefact: Artefact, fault: str, place: str) -> bool:
    options = artefact.options
    return options.get("fault", "none") == fault and options.get("at", "build") == place


class FakeCupti:
    """A CUPTI whose GPU ran one kernel, unless it goes wrong when the second row is traced."""

    ActivityKind = SimpleNamespace(CONCURRENT_KERNEL=10, MEMCPY=1, MEMSET=2)

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.flushed = 0

    def activity_register_callbacks(self, requested: object, completed: Callable[[list[Any]], None]) -> None:
        self.completed = completed

    def activity_enable(self, kind: int) -> None:
        if self.flushed:
            go_wrong(self.artefact, "trace")

    def activity_disable(self, kind: int) -> None:
        pass

    def activity_flush_all(self, flag: int) -> None:
        self.flushed += 1
        self.completed([SimpleNamespace(kind=10, name="planted_kernel", start=1, end=801)])


def plant_cupti(artefact: Artefact) -> None:
    package = ModuleType("cupti")
    package.cupti = FakeCupti(artefact)  # type: ignore[attr-defined]
    sys.modules["cupti"] = package


class Absent(Planted):
    name = "absent"

    def probe(self) -> Probe:
        return Probe(reason="the package absent is not installed", install="pip install absent")
