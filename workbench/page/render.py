"""Put the page together: one file with its data, its drawings and what draws them."""

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbench import __version__
from workbench.job import Json
from workbench.page.break_even import break_even_cards
from workbench.page.charts import CHARTS, CONFIG
from workbench.page.conditions import HEADINGS, conditions_of
from workbench.page.kernel_shares import kernel_cards
from workbench.page.pareto import pareto_cards
from workbench.page.roofline import roofline_cards
from workbench.page.rows import FILTERS, NUMBERS, Row, Section, number_rows
from workbench.page.samples import row_samples, share_out
from workbench.page.times import time_cards
from workbench.progress import Progress
from workbench.selection import Setting

COMPACT: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}
ASSETS = Path(__file__).parent / "assets"
GUESS_S = 0.05
"""Seconds that the builds of one workload take to weigh, before the first is known."""


def render(settings: Sequence[Setting], progress: Progress) -> bytes:
    """Write the page of these settings."""
    sections = number_rows(settings)
    progress.say("weighing builds")
    progress.expect(len(sections), GUESS_S)
    shown = contents(settings, sections, progress.advance)
    progress.say("writing the page")
    data, library = pack(json.dumps(drawn(shown), **COMPACT)), pack(vega())
    return environment().get_template("page.html").render(**shown, data=data, library=library).encode()


def contents(settings: Sequence[Setting], sections: Sequence[Section], advance: Callable[[], None]) -> Json:
    """Gather what the template shows, and the data that its script draws; `advance` is called a section."""
    rows = [row for section in sections for row in section.rows]
    most = share_out(rows)
    return {
        "version": __version__,
        "rows": rows,
        "numbers": NUMBERS,
        "filters": {name: options(rows, name) for name in FILTERS},
        "groups": {
            "answers": time_cards(sections),
            "pareto": pareto_cards(sections),
            "roofline": roofline_cards(sections),
            "build": break_even_cards(sections, advance),
            "kernels": kernel_cards(sections),
        },
        "samples": [row_samples(row, most) for row in rows if row.record.processes],
        "most": most,
        "headings": HEADINGS,
        "conditions": [conditions_of(setting) for setting in settings],
        "newest": max(row.record.created for row in rows),
        "backends": {row.record.name: row.colour for row in rows},
    }


def options(rows: Sequence[Row], name: str) -> list[str]:
    """List what the rows can be filtered by, numbers by their size."""
    found = {row.place[name] for row in rows}
    return sorted(found, key=lambda text: (int(text) if text.isdecimal() else 0, text))


def drawn(shown: Json) -> Json:
    """Return what the page's script draws: specifications, the data of each card by its name, samples."""
    named = {f"{name}-{at}": card for name, cards in shown["groups"].items() for at, card in enumerate(cards)}
    cards = {name: card.as_json() for name, card in named.items()}
    return {"charts": compiled(), "cards": cards, "samples": shown["samples"]}


def compiled() -> Json:
    """Compile the drawings to Vega; their data are filled in by the page's script.

    Vega-Lite's own compiler would be a third of what draws them in the page.
    """
    return {name: vl_convert.vegalite_to_vega(chart, config=CONFIG) for name, chart in CHARTS.items()}


def vega() -> str:
    """Return what draws Vega, a script that fetches nothing.

    vl_convert knows its own copy by the address it came from, which its pages name: the `vega` that it offers
    scripts is null in 1.9.
    """
    page = vl_convert.vega_to_html({}, bundle=False)
    (source,) = re.findall(r'src="(\S+/vega)@', page)
    module = f"{source}@{vl_convert.get_vega_version()}/+esm.js"
    script = f'import {{ View, parse }} from "{module}"; window.vega = {{ View, parse }};'
    return str(vl_convert.javascript_bundle(script))


def pack(text: str) -> str:
    """Write a text as gzip in base64: scripts by half, numbers to a third."""
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def environment() -> Environment:
    """Return the templates; what records say is escaped in them."""
    return Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
