"""Latency against throughput over batch sizes: what one gives up for the other, and who is on the front."""

from collections.abc import Sequence

from workbench import units
from workbench.job import Json
from workbench.page.cards import Card, time_text
from workbench.page.rows import Row, Section, device_name, family_of

COLUMNS = {
    "backend": "backend",
    "batch": "batch",
    "time_text": "time, 95 % interval",
    "rate_text": "tokens/s, 95 % interval",
    "front_text": "on the front",
}


def pareto_cards(sections: Sequence[Section]) -> list[Card]:
    """Draw the rows of each model, device and length over all its batches."""
    families: dict[tuple[object, ...], list[Row]] = {}
    for section in sections:
        timed = [row for row in section.rows if row.record.timed]
        families.setdefault((id(section.setting), *family_of(section.first)), []).extend(timed)
    return [_card(rows) for rows in families.values() if rows]


def find_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell for each (latency, throughput) whether no other is at least as good in both and better in one."""
    return [
        not any(x <= latency and y >= rate and (x, y) != (latency, rate) for x, y in points)
        for latency, rate in points
    ]


def _card(rows: Sequence[Row]) -> Card:
    first = rows[0].record
    several = len({row.record.batch for row in rows}) > 1
    drawn = [{**_drawn(row), "label": f"b{row.record.batch}" if several else ""} for row in rows]
    fronts = find_front([(each["time"], each["rate"]) for each in drawn])
    for each, on in zip(drawn, fronts, strict=True):
        each |= {"front": on, "front_text": "yes" if on else "no"}
    best = [each for each in drawn if each["front"]]
    said = ", ".join(f"{each['backend']} at batch {each['batch']}" for each in best)
    prefill = first.phase == "prefill"
    return Card(
        chart="pareto",
        title=f"prefill, {first.prompt} tokens a sequence" if prefill else f"decode, context {first.context}",
        subtitle=f"{first.model}, {first.dtype}, {device_name(first)}",
        text=f"Tokens a second over the time of one call. On the front, by medians: {said}.",
        rows=sorted(drawn, key=lambda each: (each["backend"], each["batch"])),
        columns=COLUMNS,
        more={"front": sorted(best, key=lambda each: float(each["time"]))},
        notes=[] if several else ["one batch size: `compare --batch 1,8,32` adds others"],
    )


def _drawn(row: Row) -> Json:
    record = row.record
    time = record.time_s
    assert time is not None
    tokens = record.tokens_a_call
    low, high = tokens / time.high, tokens / time.low
    return {
        "row": row.number,
        "colour": row.colour,
        "backend": record.name,
        "batch": record.batch,
        "time": time.median,
        "low": time.low,
        "high": time.high,
        "rate": tokens / time.median,
        "rate_low": low,
        "rate_high": high,
        "time_text": time_text(record),
        "rate_text": f"{units.significant(tokens / time.median)} "
        f"[{units.significant(low)}, {units.significant(high)}]",
    }
