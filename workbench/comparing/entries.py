"""The rows of one comparison on their way to records: what is known of each, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from workbench import __version__, units
from workbench.building.manifest import Manifest
from workbench.building.pickup import Engines
from workbench.building.store import Engine
from workbench.caches import code_version
from workbench.comparing.contestants import Contestant
from workbench.comparing.request import Settings
from workbench.comparing.source import Source
from workbench.device.machine import Device
from workbench.gate import GATE
from workbench.job import Json, RowResult
from workbench.plan import PlannedGroup, PlannedRow, with_slopes
from workbench.record import Record, method, row_key
from workbench.stopping import STOPPING
from workbench.store import Store


@dataclass
class Entry:
    """One row of one backend."""

    contestant: Contestant
    group: PlannedGroup
    row: PlannedRow
    blank: Record
    """The row as it will be recorded, but for what measuring tells."""
    engine: Engine | None = None
    """What was built ahead for it."""
    results: dict[int, RowResult] = field(default_factory=dict)
    """What each process measured, by repeat."""
    failure: RowResult | None = None
    """Why a process measured nothing; the row then has no time."""
    record: Record | None = None
    """The finished row."""

    @property
    def key(self) -> str:
        """Name of the row's side files, however many processes it is to have: those of a comparison that was
        cut off serve one of fewer, or of more.
        """
        return row_key(replace(self.blank, protocol=method(self.blank.protocol)))

    def lacks(self, repeat: int) -> bool:
        """Whether this process is still to be run."""
        return self.record is None and self.failure is None and repeat not in self.results


def enter(
    settings: Settings,
    device: Device,
    source: Source,
    store: Store,
    contestants: Sequence[Contestant],
    groups: Sequence[PlannedGroup],
    again: bool,
    engines: Engines | None = None,
) -> list[Entry]:
    """List every row of every backend, with what earlier calls have measured of it.

    As soon as one engine that works here runs in another process, all have rows by the slope clock, and it
    has no others of decode. `engines` are those that were built ahead.
    """
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:6]}"
    known = {row_key(each): each for each in store.read(device.name, source.name)}  # the last one counts
    elsewhere = {
        each.name
        for each in contestants
        if not each.probe.in_process and each.obstacle(device.device, settings.dtype) is None
    }
    entries = []
    for group in with_slopes(groups) if elsewhere else groups:
        for row in group.rows:
            for contestant in contestants:
                if row.clock == "chained" and contestant.name in elsewhere:
                    continue
                engine = (engines or {}).get((contestant.name, group.shapes))
                blank = blank_record(run, settings, device, source, contestant, row, engine)
                entry = Entry(contestant, group, row, blank, engine)
                recall(entry, known, store, again)
                entries.append(entry)
    return entries


def recall(entry: Entry, known: dict[str, Record], store: Store, again: bool) -> None:
    """Take over what is known of a row: that it cannot run, its record, or some of its processes."""
    blank, gpu = entry.blank, str(entry.blank.gpu["name"])
    obstacle = entry.contestant.obstacle(blank.device, blank.dtype, blank.clock)
    if obstacle:
        entry.record = replace(blank, status=obstacle[0], reason=obstacle[1])
    elif again:
        return
    elif (row := known.get(row_key(blank))) and row.timed:
        entry.record = row
    else:
        processes = range(blank.protocol["processes"])
        kept = store.kept(gpu, entry.key)
        entry.results = {repeat: result for repeat, result in kept.items() if repeat in processes}


def blank_record(
    run: str,
    settings: Settings,
    device: Device,
    source: Source,
    contestant: Contestant,
    row: PlannedRow,
    engine: Engine | None = None,
) -> Record:
    """Describe a row before it is measured."""
    return Record(
        run=run,
        created=units.moment(),
        workbench=f"{__version__}+{code_version(contestant.backend)}",
        backend=contestant.backend,
        options=contestant.options,
        definition=None,
        provenance=None,
        model=source.name,
        weights=source.checksum,
        phase=row.phase,
        batch=row.batch,
        prompt=row.prompt,
        context=row.context,
        steps=row.steps,
        dtype=settings.dtype,
        device=device.device,
        gpu=device.identity(),
        status="missing",
        reason="not measured",
        clock=row.clock,
        protocol=protocol(settings, row),
        versions=dict(contestant.probe.versions),
        engine=describe_engine(engine.manifest) if engine else {},
    )


def describe_engine(manifest: Manifest) -> Json:
    """Write down what a row's engine is, if it was built ahead."""
    return {
        "key": manifest.recipe.key,
        "target": manifest.recipe.target,
        "code": list(manifest.code),
        "untuned": manifest.untuned,
        "built": manifest.created,
        "build_s": manifest.build_s,
    }


def protocol(settings: Settings, row: PlannedRow | None = None) -> dict[str, Any]:
    """Write down how rows are verified and timed; rows of unlike protocols are never compared."""
    held = {"gate": GATE, "processes": settings.repeats, "budget_s": settings.budget_s, **STOPPING}
    if row is None or row.lead is None or row.steps is None:
        return held
    return held | {"slope": [row.lead, row.lead + row.steps]}
