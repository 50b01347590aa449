"""Every row that the README shows is a record's, compared as the report compares it."""

from tests.readme.tables import Shown, records, report, shown, summaries, summary
from workbench.report import title


def test_tables_are_those_of_the_records() -> None:
    tables, kept = shown(), list(records())
    assert len(tables) > 5
    for table in tables:
        rows, winner = report(table, kept)
        assert list(table.rows) == rows
        assert table.winner.startswith(winner)


def test_a_table_that_was_edited_is_found() -> None:
    kept = list(records())
    table = shown()[0]
    first = table.rows[0]
    edited = Shown(table.title, (first.replace(" ok ", " unstable "), *table.rows[1:]), table.winner)
    assert report(edited, kept)[0] != list(edited.rows)


def test_summaries_are_those_of_the_records() -> None:
    kept = {
        (title(record), record.name, summary(record))
        for record in records()
        if record.timed and record.limit_share is not None
    }
    found = list(summaries())
    assert len(found) > 50
    for work, name, cell in found:
        same = {each[0] for each in kept if each[1:] == (name, cell)}
        assert any(each.startswith((f"{work},", f"{work} ")) for each in same), (work, name, cell)
