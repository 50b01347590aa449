"""The backends of a comparison, each asked in its own Python whether it works here."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backends import registry
from backends.contract import Probe, Target
from backends.variables import set_variables
from workbench.caches import cache_root
from workbench.comparing.request import Named
from workbench.job import Json, ProbeJob
from workbench.process import run
from workbench.record import backend_name
from workbench.side_by_side import side_by_side

ALL_OF_A_REQUEST = (
    "its engine answers whole requests from another process, so no clock sees a prefill alone: "
    "its decode is timed by slope (--phases decode)"
)

Answer = tuple[Probe, list[Json]]
"""What a backend says of itself, and of each choice of options; of none where it cannot be asked."""
UNKNOWN: Json = {"versions": {}, "refusal": None}
"""What is known of a choice then."""


@dataclass(frozen=True)
class Contestant:
    """A backend with its options, and what its probe said."""

    backend: str
    options: dict[str, str]
    python: str
    probe: Probe
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The versions of what makes its artefacts, if it can keep them: `contract.Keeper.compilers`."""
    refusal: str | None = None
    """Why a build would refuse the options, as far as its backend knows before."""

    @property
    def name(self) -> str:
        """The backend as typed."""
        return backend_name(self.backend, self.options)

    def obstacle(self, device: str, dtype: str, clock: str | None = None) -> tuple[str, str] | None:
        """Return (status, reason) if it cannot run this work here, or not by this clock; None if it can."""
        if not self.probe.usable:
            install = f"; install it: {self.probe.install}" if self.probe.install else ""
            return "missing", f"{self.probe.reason}{install}"
        kind = device.split(":")[0]
        if kind not in self.probe.devices:
            return "unsupported", f"runs on {', '.join(self.probe.devices)} here, not on {kind}"
        if dtype not in self.probe.dtypes:
            return "unsupported", f"takes {', '.join(self.probe.dtypes)}, not {dtype}"
        if self.refusal:
            return "unsupported", self.refusal
        if clock == "drained" and not self.probe.in_process:
            return "unsupported", ALL_OF_A_REQUEST
        return None


def probe_backends(names: Sequence[str], pythons: Mapping[str, str]) -> dict[str, Probe]:
    """Ask each backend once, in a process of its own, as many at a time as there are cores."""
    answers = ask_all([ProbeJob(name) for name in dict.fromkeys(names)], pythons)
    return {name: probe for name, (probe, _) in answers.items()}


def ask_all(jobs: Sequence[ProbeJob], pythons: Mapping[str, str]) -> dict[str, Answer]:
    """Ask several at a time; returns each one's answer by its name."""
    stop = threading.Event()
    answers = side_by_side(
        lambda job: ask(job, pythons.get(job.backend, sys.executable), stop.is_set), jobs, stop
    )
    return {job.backend: answer for job, answer in zip(jobs, answers, strict=True)}


def ask(job: ProbeJob, python: str, stopped: Callable[[], bool]) -> Answer:
    """Ask one backend in its own Python; whatever goes wrong there is the reason it is not usable."""
    log = cache_root() / "logs" / f"probe-{job.backend}.log"
    outcome = run(job, python=python, log=log, stopped=stopped)
    if outcome.status != "ok" or outcome.result is None:
        failed = Probe(reason=f"its probe failed in {python}: {outcome.reason}")
        return failed, []
    answer = outcome.result
    probe = Probe(
        reason=answer["reason"],
        install=answer["install"],
        versions=answer["versions"],
        devices=tuple(answer["devices"]),
        dtypes=tuple(answer["dtypes"]),
        in_process=answer["in_process"],
    )
    return probe, answer["choices"]


def choose(named: tuple[Named, ...] | None, target: Target, pythons: Mapping[str, str]) -> list[Contestant]:
    """Return the backends asked for, or every usable one that computes."""
    wanted = named if named is not None else tuple((name, {}) for name in registry.names() if name != "null")
    choices = {name: [options for other, options in wanted if other == name] for name, _ in wanted}
    answers = ask_all([ProbeJob(name, target, tuple(each)) for name, each in choices.items()], pythons)
    found = []
    for name, options in wanted:
        probe, told = answers[name]
        choice = told[choices[name].index(options)] if told else UNKNOWN
        made_by = choice["versions"]
        probe = replace(probe, versions={**made_by, **probe.versions, **set_variables()})
        python = pythons.get(name, sys.executable)
        found.append(Contestant(name, options, python, probe, made_by, choice["refusal"]))
    usable = [each for each in found if each.obstacle(target.device, target.dtype) is None]
    return found if named is not None else usable
