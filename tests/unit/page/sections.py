"""Sections of a page for tests, from records."""

from workbench.page.rows import Section, number_rows
from workbench.record import Record
from workbench.selection import select


def sections_of(*records: Record) -> list[Section]:
    """Return the sections that a page of these records has."""
    return number_rows(select(records))
