"""Whose kernels a row's time goes to: a vendor's library, the framework's own, or generated ones."""

from collections.abc import Sequence

from workbench import units
from workbench.device.kernels import ORIGINS
from workbench.job import Json
from workbench.kernel_lines import kernel_lines
from workbench.page.cards import Card
from workbench.page.rows import Row, Section, device_name
from workbench.report import title

COLUMNS = {
    "backend": "backend",
    "origin": "origin",
    "share_text": "share of the kernels' time",
    "busy_text": "all kernels, a call",
    "gaps_text": "gaps",
    "launches_text": "launches",
}


def kernel_cards(sections: Sequence[Section]) -> list[Card]:
    """Draw the shares of each workload in which any row was traced."""
    return [_card(section) for section in sections if any(row.record.kernels for row in section.rows)]


def _card(section: Section) -> Card:
    first = section.first
    traced = [(row, row.record.kernels) for row in section.rows if row.record.kernels]
    drawn = [share for row, kernels in traced for share in _shares(row, kernels)]
    said = ", ".join(f"{each['backend']} {each['origin']} {each['share_text']}" for each in drawn)
    return Card(
        chart="kernels",
        title=title(first),
        subtitle=f"{first.model}, {first.dtype}, {device_name(first)}",
        text=f"Shares of the kernels' time by origin: {said}.",
        rows=drawn,
        columns=COLUMNS,
        listing=kernel_lines([row.record for row in section.rows]),
    )


def _shares(row: Row, kernels: Json) -> list[Json]:
    return [
        {
            "row": row.number,
            "backend": row.record.name,
            "origin": origin,
            "order": place,
            "share": kernels["shares"].get(origin, 0.0),
            "share_text": units.percent(kernels["shares"].get(origin, 0.0)),
            "busy_text": units.seconds(kernels["busy_s"]),
            "gaps_text": units.seconds(kernels["gaps_s"]),
            "launches_text": f"{kernels['launches']:.4g}",
        }
        for place, origin in enumerate(ORIGINS)
    ]
