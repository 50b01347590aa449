"""The backends of a comparison, each asked in its own Python whether it works here."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backends import registry
from backends.contract import Probe
from workbench.caches import cache_root
from workbench.job import ProbeJob
from workbench.process import run
from workbench.record import backend_name
from workbench.request import Named
from workbench.side_by_side import side_by_side

ALL_OF_A_REQUEST = (
    "its engine answers whole requests from another process, so no clock sees a prefill alone: "
    "its decode is timed by slope (--phases decode)"
)


@dataclass(frozen=True)
class Contestant:
    """A backend with its options, and what its probe said."""

    backend: str
    options: dict[str, str]
    python: str
    probe: Probe

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
        if clock == "drained" and not self.probe.in_process:
            return "unsupported", ALL_OF_A_REQUEST
        return None


def probe_backends(names: Sequence[str], pythons: Mapping[str, str]) -> dict[str, Probe]:
    """Ask each backend once, in a process of its own, as many at a time as there are cores."""
    ordered = list(dict.fromkeys(names))
    stop = threading.Event()
    probes = side_by_side(
        lambda name: probe(name, pythons.get(name, sys.executable), stop.is_set), ordered, stop
    )
    return dict(zip(ordered, probes, strict=True))


def probe(name: str, python: str, stopped: Callable[[], bool]) -> Probe:
    """Ask one backend in its own Python; whatever goes wrong there is the reason it is not usable."""
    log = cache_root() / "logs" / f"probe-{name}.log"
    outcome = run(ProbeJob(backend=name), python=python, log=log, stopped=stopped)
    if outcome.status != "ok" or outcome.result is None:
        return Probe(reason=f"its probe failed in {python}: {outcome.reason}")
    answer = outcome.result
    return Probe(
        reason=answer["reason"],
        install=answer["install"],
        versions=answer["versions"],
        devices=tuple(answer["devices"]),
        dtypes=tuple(answer["dtypes"]),
        in_process=answer["in_process"],
    )


def choose(
    named: tuple[Named, ...] | None, device: str, dtype: str, pythons: Mapping[str, str]
) -> list[Contestant]:
    """Return the backends asked for, or every usable one that computes; raises UserError for unknown ones."""
    for name, options in named or ():
        registry.check_options(registry.find(name), options)
    wanted = named if named is not None else tuple((name, {}) for name in registry.names() if name != "null")
    probes = probe_backends([name for name, _ in wanted], pythons)
    found = [
        Contestant(name, options, pythons.get(name, sys.executable), probes[name]) for name, options in wanted
    ]
    return found if named is not None else [each for each in found if each.obstacle(device, dtype) is None]
