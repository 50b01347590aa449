"""Build what was ordered and is not in the store: each engine in a worker, checked before it is kept."""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from backends.contract import Target
from models.errors import UserError
from workbench import __version__, units
from workbench.building.machine_code import inspect
from workbench.building.manifest import ENGINE, TUNING_DATA, Damaged, Manifest, seal_files
from workbench.building.orders import Order, place_orders
from workbench.building.recipe import TUNES_NOTHING, UNTUNED, Recipe, Tuning, tuned_on
from workbench.building.request import BuildRequest
from workbench.building.store import Engine, EngineStore
from workbench.building.untimed import tell_untimed
from workbench.building.work import find_keeper
from workbench.caches import LOCKS, cache_root, compiler_environment, digest
from workbench.device.locks import DeviceLock
from workbench.device.machine import Device, thread_environment
from workbench.job import BuildJob, TuneJob
from workbench.process import Outcome, run
from workbench.progress import Progress
from workbench.side_by_side import side_by_side
from workbench.store import slug

BUILD_S = 30.0
"""Guess for one engine, before the first."""


@dataclass(frozen=True)
class Row:
    """What came of an order."""

    order: Order
    status: str
    """`ok`, or a status of `workbench.record`."""
    reason: str | None = None
    engine: Engine | None = None
    built: bool = False
    """Whether it was built now, not found."""
    warm_s: float | None = None
    """What finding it in the store takes: the question for versions, and every byte checked."""


class Failed(Exception):
    """Say how a build ended that gave no engine."""

    def __init__(self, status: str, reason: str | None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def build(request: BuildRequest) -> list[Row]:
    """Build every engine that is not in the store yet; raises UserError before anything is built."""
    with Progress(Console(stderr=True)) as progress, ExitStack() as locks:
        store = EngineStore(request.engines)
        store.prepare()
        progress.say("asking the backends for their versions")
        orders = place_orders(request)
        if request.tune and (untimed := tell_untimed(orders)):
            progress.warn(untimed)
        # What times kernels, or runs on a GPU at all, must not share the device with a measurement.
        timing = any(order.chooser and order.here for order in orders)
        for device in {each.here for each in orders if each.here and (each.here.is_gpu or each.chooser)}:
            locks.enter_context(DeviceLock(device, LOCKS))
        progress.expect(len(orders), BUILD_S)
        # Kernels that are timed share the device with no other build: their choice is kept.
        return Builder(request, store, progress).fill(orders, 1 if timing else request.workers())


class Builder:
    """Fills orders, several at a time."""

    def __init__(self, request: BuildRequest, store: EngineStore, progress: Progress) -> None:
        self.request = request
        self.store = store
        self.progress = progress
        self.stop = threading.Event()
        """Set when the user stops the command: workers are ended by the threads that wait for them."""

    def fill(self, orders: Sequence[Order], workers: int) -> list[Row]:
        """Return what came of every order, in their order."""
        return side_by_side(self.fill_one, orders, self.stop, workers)

    def fill_one(self, order: Order) -> Row:
        """Find an engine or build it; whatever goes wrong is this row's reason alone."""
        try:
            if order.answer.compilers is None:
                raise Failed(order.answer.status, order.answer.reason)
            if self.request.tune:
                self.tune(order)
            return self.obtain(order)
        except Failed as failure:
            return Row(order, failure.status, failure.reason)
        except (OSError, UserError, Damaged) as error:  # a full disk must not cost the others
            return Row(order, "build_failed", f"the engine could not be kept: {error}")
        finally:
            self.progress.advance()

    def obtain(self, order: Order) -> Row:
        """Take an engine from the store, or build it where nobody else does; raises Failed."""
        tuning, target = self.find_tuning(order)
        recipe = order.recipe(tuning)
        with self.store.locked(recipe, partial(self.wait, order)):
            start = time.perf_counter()
            engine, built = self.find(recipe), False
            if engine is None:
                self.build(order, recipe, target, tuning.card)
                start = time.perf_counter()
                engine, built = self.store.open(self.store.folder(recipe)), True
            warm_s = order.answer.asked_s + time.perf_counter() - start
        return Row(order, "ok", engine.manifest.note, engine, built, warm_s)

    def wait(self, order: Order) -> None:
        """Say whose engine is waited for; raises KeyboardInterrupt once the user has stopped the command."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.progress.say(f"waiting for another build of {describe(order)}")

    def find(self, recipe: Recipe, kind: str = ENGINE) -> Engine | None:
        """Return a sound engine of this recipe, or tuning data; what is damaged is told of, and made anew."""
        try:
            return self.store.find(recipe, kind)
        except Damaged as damage:
            self.progress.warn(f"{self.store.folder(recipe, kind)} is damaged: {damage}; it is made anew")
            return None

    def build(self, order: Order, recipe: Recipe, target: Target, card: str | None) -> None:
        """Build in a worker with empty caches and keep what comes out; raises Failed, OSError.

        `card` is the name of the device that its kernels are chosen on.
        """
        with self.store.workspace() as work:
            folder = work / "engine"
            folder.mkdir()
            job = BuildJob(*order.named, order.config, order.shapes, target, str(folder))
            result = self.run(order, recipe, job, work / "caches").result or {}
            code = inspect(sorted(folder.iterdir()), order.aim.architecture)
            if find_keeper(order.named[0]).machine_code and code.fault:
                raise Failed("build_failed", f"what was built is not for {order.target}: {code.fault}")
            self.keep(order, recipe, folder, code=code.found, way=code.way, timed_on=card, **result)

    def keep(self, order: Order, recipe: Recipe, folder: Path, **more: Any) -> None:
        """Seal a folder and put it into the store; `more` is the rest of its manifest. Raises OSError."""
        manifest = Manifest(
            recipe=recipe,
            model=order.model,
            created=units.moment(),
            workbench=__version__,
            files=seal_files(folder),
            **more,
        )
        self.store.commit(manifest, folder)

    def find_tuning(self, order: Order) -> tuple[Tuning, Target]:
        """Return where a backend's choices among kernels come from, and the target with the data if any.

        Raises Failed for damaged data.
        """
        if not order.chooser:
            return TUNES_NOTHING, order.aim
        if order.tuner and (found := self.find_data(order)):
            choices = digest({"choices": order.tuner.choices(found.folder, order.aim, order.named[1])})
            return Tuning(choices, found.manifest.timed_on), replace(order.aim, tuning=str(found.folder))
        return UNTUNED if order.here is None else tuned_on(order.here), order.aim

    def find_data(self, order: Order) -> Engine | None:
        """Return tuning data if there are any; those of another card than the one here are told of only.

        Raises Failed for damaged data: an engine built without them would not be what was asked for.
        """
        recipe = order.data_recipe()
        data = f"tuning data {self.store.folder(recipe, TUNING_DATA)}"
        try:
            found = self.store.find(recipe, TUNING_DATA)
        except Damaged as damage:
            cure = f"`build --tune` where there is a {order.target}, or remove that folder"
            raise Failed("build_failed", f"{data} are damaged: {damage}; {cure}") from damage
        if found and order.here and order.here.name != found.manifest.timed_on:
            difference = f"were timed on {found.manifest.timed_on}, and this is {order.here.name}"
            self.progress.warn(f"{data} {difference}: not used; `build --tune` times anew, for this one")
            return None
        return found

    def tune(self, order: Order) -> None:
        """Write tuning data of the device, which must be here, unless they are there; raises Failed.

        A backend that finds nothing to time is told of: its engine lacks nothing.
        """
        if not order.tuner:
            return
        recipe = order.data_recipe()
        if order.here is None:
            if self.store.folder(recipe, TUNING_DATA).is_dir():
                return  # checked where they are read
            raise Failed("unsupported", f"--tune needs the GPU itself: there is no {order.target} here")
        with self.store.locked(recipe, partial(self.wait, order)):
            found = self.find(recipe, TUNING_DATA)
            if found is not None and found.manifest.timed_on == order.here.name:
                return
            try:
                self.search(order, recipe, order.here)
            except Failed as failure:
                if failure.status != "unsupported":
                    raise
                self.progress.warn(f"--tune kept nothing for {describe(order)}: {failure.reason}")

    def search(self, order: Order, recipe: Recipe, here: Device) -> None:
        """Let a backend time in a worker with empty caches and keep what it chose; raises Failed, OSError."""
        with self.store.workspace() as work:
            folder = work / "tuning"
            folder.mkdir()
            job = TuneJob(*order.named, order.config, order.shapes, order.aim, str(folder))
            start = time.perf_counter()
            self.run(order, recipe, job, work / "caches")
            seconds = time.perf_counter() - start
            if not any(folder.iterdir()):
                raise Failed("unsupported", f"{order.name} timed nothing")
            described = {"definition": "", "provenance": "", "untuned": False, "code": (), "way": None}
            self.keep(
                order, recipe, folder, build_s=seconds, timed_on=here.name, kind=TUNING_DATA, **described
            )

    def run(self, order: Order, recipe: Recipe, job: BuildJob | TuneJob, caches: Path) -> Outcome:
        """Run a job in the backend's own Python; raises Failed."""
        self.progress.say(f"{describe(order)}: {job.kind}")
        threads = thread_environment(order.here) if order.here else {}
        outcome = run(
            job,
            python=self.request.python(order.named[0]),
            log=cache_root() / "logs" / "build" / f"{slug(order.name)}-{recipe.key}.log",
            environment=compiler_environment(caches) | threads,
            stopped=self.stop.is_set,
        )
        if not outcome.ok:
            raise Failed(outcome.status, outcome.reason)
        return outcome


def describe(order: Order) -> str:
    """Phrase an order for the progress line."""
    return f"{order.name} for {order.target}, batch {order.shapes.batch}"
