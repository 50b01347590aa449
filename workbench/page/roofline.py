"""The roofline: how much work a row does for each byte, against what its device was measured to do.

After Williams, Waterman and Patterson, Roofline: an insightful visual performance model, 2009. The work
is the least there is (`models/work.py`), so a point shows useful operations and never extra ones.
"""

from collections.abc import Sequence

from models.config import PRESETS
from models.work import Work, weight_bytes
from workbench import units
from workbench.caches import digest
from workbench.comparing.rows import least_work
from workbench.device.ceilings import CACHE_FACTOR
from workbench.job import Json
from workbench.page.cards import Card
from workbench.page.rows import Row, Section, device_name
from workbench.plan import PlannedRow
from workbench.record import Record
from workbench.report import row_title, short_title

COLUMNS = {
    "backend": "backend",
    "workload": "workload",
    "intensity_text": "FLOP a byte",
    "rate_text": "reached, 95 % interval",
    "limit_text": "share of the limit",
}
ENDS = ("low", "median", "high")
CACHED = f"rows without a share of the limit move less than {CACHE_FACTOR} times the cache, maybe from there"
MARGIN = 4.0
"""How far a roof goes on beyond the rows and its ridge, as a factor."""


def roofline_cards(sections: Sequence[Section]) -> list[Card]:
    """Draw all rows of each setting under the ceilings of their records."""
    settings: dict[int, list[Row]] = {}
    for section in sections:
        settings.setdefault(id(section.setting), []).extend(row for row in section.rows if row.record.timed)
    return [_card(rows) for rows in settings.values() if rows]


def work_of(record: Record) -> Work | None:
    """Return the least work of a record's row; None where neither it nor the model's shapes are known.

    Records before schema 3 lack it. A preset's name may be that of somebody's folder too, so its weights
    must take the bytes recorded.
    """
    if record.least_work:
        return Work(**record.least_work)
    config = PRESETS.get(record.model)
    if config is None or record.peak_bytes.get("weights") != weight_bytes(config, record.dtype):
        return None
    length = record.prompt or record.context or 0
    return least_work(config, record.dtype, PlannedRow(record.phase, record.batch, length, record.steps))


def _card(rows: Sequence[Row]) -> Card:
    first = rows[0].record
    works = [(row, work_of(row.record)) for row in rows]
    drawn = [_drawn(row, work) for row, work in works if work]
    roofs = _roofs(rows, [each["intensity"] for each in drawn])
    labels = [roof for roof in roofs if "label" in roof]
    said = ", ".join(f"{each['backend']} {each['workload']} {each['rate_text']}" for each in drawn)
    ceilings = "; ".join(label["label"] for label in labels)
    return Card(
        chart="roofline",
        title=f"{first.model}, {first.dtype}",
        subtitle=device_name(first),
        text=f"Ceilings: {ceilings or 'none'}. Rows: {said}.",
        rows=drawn,
        columns=COLUMNS,
        members=[row.number for row in rows],
        more={"roofs": roofs, "labels": labels},
        notes=_notes(works, bool(roofs)),
    )


def _notes(works: Sequence[tuple[Row, Work | None]], roofed: bool) -> list[str]:
    """Say which rows are not drawn, and what binds no row."""
    unknown = [row_title(row.record) for row, work in works if not work]
    notes = [f"not drawn, for the model's shapes are unknown: {', '.join(unknown)}"] if unknown else []
    if not roofed:
        return [*notes, "no ceilings were measured"]
    cached = any(row.record.limit_share is None for row, _ in works)
    return [*notes, *([CACHED] if cached else [])]


def _drawn(row: Row, work: Work) -> Json:
    record = row.record
    time = record.time_s
    assert time is not None
    rate, low, high = (work.flops / seconds for seconds in (time.median, time.high, time.low))
    intensity = work.flops / work.bytes
    share = record.limit_share
    return {
        "row": row.number,
        "colour": row.colour,
        "backend": record.name,
        "phase": record.phase,
        "workload": short_title(record),
        "intensity": intensity,
        "rate": rate,
        "low": low,
        "high": high,
        "intensity_text": units.significant(intensity),
        "rate_text": f"{units.rate(rate, 'FLOP')} [{units.rate(low, 'FLOP')}, {units.rate(high, 'FLOP')}]",
        "limit_text": units.percent(share)
        if share is not None
        else f"under {CACHE_FACTOR} times the cache"
        if record.ceilings
        else "-",
    }


def _roofs(rows: Sequence[Row], intensities: Sequence[float]) -> list[Json]:
    """Draw each measured pair of ceilings once, from below the least intensity to beyond the greatest."""
    found: dict[str, Json] = {}
    for row in rows:
        ceilings = row.record.ceilings
        if ceilings.get("bandwidth_bytes_per_s") and ceilings.get("flops_per_s"):
            found.setdefault(digest(ceilings), ceilings)
    return [
        point
        for number, ceilings in enumerate(found.values())
        for point in roof_points(ceilings, intensities, f"roof {number}")
    ]


def roof_points(ceilings: Json, intensities: Sequence[float], name: str) -> list[Json]:
    """Return the corners of one roof with its interval, and its label at the right end."""
    bandwidth, products = ceilings["bandwidth_bytes_per_s"], ceilings["flops_per_s"]
    ridges = [products[end] / bandwidth[end] for end in ENDS]
    left = min([*intensities, *ridges]) / MARGIN
    right = max([*intensities, *ridges]) * MARGIN
    points: list[Json] = [
        {"roof": name, "intensity": x}
        | {f"roof_{end}": min(products[end], bandwidth[end] * x) for end in ENDS}
        for x in (left, *sorted(ridges), right)
    ]
    points[-1]["label"] = f"{units.rate(products['median'], 'FLOP')}, {units.rate(bandwidth['median'], 'B')}"
    return points
