"""Ask backends, each in its own Python, what shapes the artefacts they would build."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backends.contract import Target
from workbench.caches import cache_root
from workbench.comparing.request import Named
from workbench.job import CompilersJob, Json
from workbench.process import run
from workbench.record import backend_name
from workbench.side_by_side import side_by_side
from workbench.store import slug


@dataclass(frozen=True)
class Answer:
    """What a backend says of one target."""

    compilers: Mapping[str, str] | None
    """Versions; None if it builds nothing for it."""
    status: str = "ok"
    reason: str | None = None
    asked_s: float = 0.0
    """What asking took; one question serves all targets of a backend."""


def ask_all(asked: Sequence[tuple[Named, str]], targets: Sequence[Target]) -> list[list[Answer]]:
    """Ask backends, each in its Python; returns the answers of each in the order of the targets.

    Raises UserError for a Python that cannot be started.
    """
    stop = threading.Event()
    return side_by_side(lambda each: ask(*each, targets, stop.is_set), asked, stop)


def ask(
    named: Named, python: str, targets: Sequence[Target], stopped: Callable[[], bool] = lambda: False
) -> list[Answer]:
    """Ask one backend, in its Python."""
    start = time.perf_counter()
    log = cache_root() / "logs" / f"compilers-{slug(backend_name(*named))}.log"
    job = CompilersJob(*named, tuple(targets))
    outcome = run(job, python=python, log=log, stopped=stopped)
    asked_s = time.perf_counter() - start
    if outcome.result is None:
        return [Answer(None, outcome.status, outcome.reason, asked_s)] * len(targets)
    return [_read(each, asked_s) for each in outcome.result["targets"]]


def _read(row: Json, asked_s: float) -> Answer:
    return Answer(row.get("compilers"), row.get("status", "ok"), row.get("reason"), asked_s)
