"""The worker process: one job in on standard input, events out on a pipe of their own.

Started as `python -P -m workbench.worker --pipe FD` by `workbench.process`. Nothing that a backend prints
can reach the pipe, and nothing heavy is imported before the job asks for it: the worker must start in
any backend's environment with this project's base dependencies alone.
"""

import argparse
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from backends.contract import Target
from models.errors import UserError
from workbench import job as jobs
from workbench.events import Events
from workbench.job import BuildJob, CompilersJob, GoldenJob, Json, MeasureJob, TuneJob


def probe(job: Json, events: Events) -> Json:  # noqa: ARG001 (never leaves `start`)
    """Ask a backend whether it works in this environment."""
    from backends import registry
    from backends.contract import Probe
    from workbench.building.work import tell_choice

    try:
        backend = registry.find(job["backend"])
        found = backend.probe()
    except UserError as error:  # this environment lacks it, or has a broken one
        return {**jobs.to_json(Probe(reason=str(error))), "choices": []}
    target = Target(**job["target"]) if job["target"] else None
    choices = [tell_choice(backend, target, options) for options in job["choices"]] if target else []
    return {**jobs.to_json(found), "versions": dict(found.versions), "choices": choices}


def preset(job: Json, events: Events) -> None:
    """Write a preset's weights."""
    from models.weights import write_preset

    events.enter("load")
    write_preset(job["preset"], job["dtype"], Path(job["folder"]))


def golden(job: Json, events: Events) -> None:
    """Compute and save the golden logits of every group."""
    from models.checkpoint import open_checkpoint
    from workbench.checking.golden import compute_golden, save_golden

    values = GoldenJob(**{**job, "groups": tuple(map(jobs.read_group, job["groups"]))})
    weights = open_checkpoint(Path(values.model), values.dtype)

    def beat(done: int, total: int) -> None:  # noqa: ARG001
        events.enter("gate")  # every layer has the stage's time limit to itself

    for group in values.groups:
        beat(0, 1)
        computed = compute_golden(weights, group.shapes, values.device, values.seed, progress=beat)
        save_golden(computed, Path(group.golden))


def ceilings(job: Json, events: Events) -> Json:
    """Measure what the device can do at most."""
    from workbench.device.ceilings import measure_ceilings

    events.enter("time")
    return measure_ceilings(jobs.read_ceilings(job))


def measure(job: Json, events: Events) -> None:
    """Build, check and time one engine."""
    from workbench.measure import measure as measure_engine

    measure_engine(MeasureJob(**{**job, "group": jobs.read_group(job["group"])}), events)


def check(job: Json, events: Events) -> Json:
    """Build and check one engine, without timing it."""
    from workbench.measure import check_engine

    return check_engine(MeasureJob(**{**job, "group": jobs.read_group(job["group"])}), events)


def compilers(job: Json, events: Events) -> Json:  # noqa: ARG001 (never leaves `start`)
    """Ask a backend what shapes its artefacts."""
    from workbench.building.work import tell_compilers

    targets = tuple(Target(**each) for each in job["targets"])
    return tell_compilers(CompilersJob(**{**job, "targets": targets}))


def build(job: Json, events: Events) -> Json:
    """Build an artefact and save it."""
    from workbench.building.work import build_artefact

    return build_artefact(BuildJob(**jobs.read_work(job)), events)


def tune(job: Json, events: Events) -> None:
    """Keep what a backend times on the device."""
    from workbench.building.work import tune_backend

    tune_backend(TuneJob(**jobs.read_work(job)), events)


KINDS: dict[str, Callable[[Json, Events], Json | None]] = {
    "probe": probe,
    "preset": preset,
    "golden": golden,
    "ceilings": ceilings,
    "measure": measure,
    "check": check,
    "compilers": compilers,
    "build": build,
    "tune": tune,
}


def die_with_parent(pipe: int) -> None:
    """End this process and all that it started once nobody reads the pipe any more."""

    def watch() -> None:
        poll = select.poll()
        poll.register(pipe, 0)  # no event asked for: returns on an error only, that is without a reader
        poll.poll()
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Do the job on standard input; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workbench.worker")
    parser.add_argument("--pipe", type=int, required=True, help="file descriptor that events are written to")
    pipe = parser.parse_args().pipe
    events = Events(pipe)
    die_with_parent(pipe)
    try:
        job = json.load(sys.stdin)
        result = KINDS[job["kind"]](job, events)
    except BaseException as error:  # a backend that calls sys.exit() too
        events.fail(error)
        return 1
    events.send("done", result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
