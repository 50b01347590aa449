"""Records and tables of tracked rows for tests, made of as little as the test is about."""

from typing import Any

from workbench.gate import GATE
from workbench.record import ProcessRun, Record
from workbench.statistics import summarise
from workbench.stopping import STOPPING

RULES = {"gate": GATE, **STOPPING}
"""Of a protocol: how rows are verified and timed today."""

TRACK_TABLE = """
[tool.workbench.track]
backends = ["eager", "compile[mode=default]"]
context = [32]
prompt = 16
device = "cpu"
"""


def record(backend: str = "eager", samples: tuple[float, ...] = (1.0, 1.0, 1.0), **changes: Any) -> Record:
    """Return a timed decode row with two like processes, or with `changes` another one."""
    status = changes.get("status", "ok")
    timed = status in ("ok", "unstable")
    values: dict[str, Any] = {
        "run": "test",
        "created": "2026-01-01T00:00:00+00:00",
        "workbench": "0",
        "backend": backend,
        "options": {},
        "definition": "common",
        "provenance": "stock",
        "model": "tiny",
        "weights": "abc",
        "phase": "decode",
        "batch": 1,
        "prompt": None,
        "context": 128,
        "steps": 32,
        "dtype": "float32",
        "device": "cpu",
        "gpu": {"name": "Test CPU", "threads": 2},
        "status": status,
        "reason": None if timed else "because",
        "clock": "chained",
        "protocol": {"gate": 1, "processes": 2},
        "time_s": summarise([samples, samples]) if timed else None,
        "processes": (ProcessRun(samples), ProcessRun(samples)) if timed else (),
        "tokens_per_s": 1 / samples[0] if timed else None,
    }
    return Record(**(values | changes))
