"""The drawings as Vega-Lite: what is drawn where. Data come by name, colours from the page's style sheet.

Numbers are SI; axes write them with a prefix (`2.5 ms`). Colours are CSS variables, so that the theme can
change without drawing anew.
"""

from typing import Any

from workbench.device.kernels import ORIGINS
from workbench.job import Json

INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"
BACKENDS = [f"var(--backend-{index})" for index in range(10)]
"""The style sheet's colours for backends, processes and origins."""
COLOUR: Json = {"field": "colour", "type": "nominal", "scale": None}
"""Each row's own colour."""
BACKEND: Json = {"field": "backend", "type": "nominal", "sort": None, "axis": {"title": None}}
TIP: Json = {"content": "data"}
STEP: Json = {"step": 34}
"""Height of a bar with its space."""
BAR: Json = {"height": {"band": 0.62}, "tooltip": TIP}
SMALL: Json = {"labelFontSize": 11, "titleFontSize": 11}
CONFIG: Json = {
    "aria": False,
    "background": None,
    "padding": 2,
    "style": {"cell": {"stroke": None}, "guide-label": {"fill": MUTED}, "guide-title": {"fill": MUTED}},
    "axis": {
        "domainColor": LINE,
        "gridColor": LINE,
        "tickColor": LINE,
        "titleFontWeight": 400,
        "labelLimit": 190,
        **SMALL,
    },
    "legend": SMALL,
}
"""How all drawings look; their font is the style sheet's as well, but named by the page's script."""


def chart(height: int | Json, *marks: Json, **encoding: Json) -> Json:
    """Draw marks above one another, as wide as the page lets them be."""
    return {
        "width": "container",
        "height": height,
        "data": {"name": "rows"},
        "layer": list(marks),
        "encoding": encoding,
    }


def mark(kind: str, encoding: Json, *, data: str = "rows", **properties: Any) -> Json:
    """Draw one kind of mark for each of the data."""
    return {"mark": {"type": kind, **properties}, "encoding": encoding, "data": {"name": data}}


def number(field: str, **more: Any) -> Json:
    """Place by a number."""
    return {"field": field, "type": "quantitative", **more}


def span(channel: str, low: str, high: str) -> Json:
    """Place from one number to another, along x or y."""
    return {channel: number(low), f"{channel}2": {"field": high}}


def named(field: str, names: list[str], title: str | None = None) -> Json:
    """Colour by a name, with a legend; without names by numbers as they come."""
    scale: Json = {"range": BACKENDS[: len(names)], "domain": names} if names else {"range": BACKENDS}
    kind = "nominal" if names else "ordinal"
    return {"field": field, "type": kind, "legend": {"title": title, "orient": "top"}, "scale": scale}


def si_label(unit: str) -> str:
    """Write an axis' number with an SI prefix, in Vega's expression language."""
    plain = "format(datum.value, '.3~s')"
    return f"replace({plain}, regexp('([^0-9.]?)$'), ' $1') + '{unit}'" if unit else plain


def linear(field: str, unit: str, title: str | None) -> Json:
    """Place by a number on an axis that begins near the least of them."""
    return number(field, scale={"zero": False}, axis={"title": title, "labelExpr": si_label(unit)})


def logarithmic(channel: str, field: str, unit: str, title: str) -> Json:
    """Place by a number on a logarithmic axis; the more decades it has, the fewer of its ticks are shown."""
    decades = f"log(domain('{channel}')[1] / domain('{channel}')[0]) / LN10"
    digit = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
    shown = f"({decades} > 3 ? {digit} == 1 : {decades} > 0.8 ? indexof([1, 2, 5], {digit}) >= 0 : true)"
    axis = {
        "title": title,
        "labelExpr": f"{shown} ? {si_label(unit)} : ''",
        "labelOverlap": "greedy",
        "gridOpacity": {"condition": {"test": shown, "value": 1}, "value": 0},
        "ticks": False,
    }
    return number(field, scale={"type": "log", "nice": False, "padding": 14}, axis=axis)


def times() -> Json:
    """Draw a bar for each backend from zero, its interval, and the least time the ceilings allow."""
    time = number("time", axis={"title": None, "labelExpr": si_label("s")})
    low, high = {"x": number("low")}, {"x": number("high")}
    end: Json = {"color": INK, "size": 10, "thickness": 2}
    return chart(
        STEP,
        mark("bar", {"x": time, "color": COLOUR}, cornerRadiusEnd=3, opacity=0.85, **BAR),
        mark("rule", span("x", "low", "high"), color=INK, strokeWidth=2),
        mark("tick", low, **end),
        mark("tick", high, **end),
        mark("text", high | {"text": {"field": "label"}}, color=INK, align="left", dx=7, fontWeight=600),
        mark("tick", {"x": number("room")}, opacity=0),
        mark("tick", {"x": number("least")}, color=MUTED, size=26, thickness=2, tooltip=TIP),
        y=BACKEND,
    )


def pareto() -> Json:
    """Draw tokens a second over time, a line for each backend through its batches, and the front."""
    batches = {"color": COLOUR, "detail": {"field": "backend"}, "order": number("batch")}
    filled = {"condition": {"test": "datum.front", **COLOUR}, "value": PAPER}
    front = {"color": MUTED, "strokeDash": [5, 4], "interpolate": "step-after", "strokeWidth": 1.5}
    return chart(
        280,
        mark("line", {"order": number("time")}, data="front", **front),
        mark("line", batches, strokeWidth=1.5, opacity=0.6),
        mark("rule", span("x", "low", "high") | {"color": COLOUR}),
        mark("rule", span("y", "rate_low", "rate_high") | {"color": COLOUR}),
        mark("point", {"color": COLOUR, "fill": filled}, size=70, strokeWidth=2, opacity=1, tooltip=TIP),
        mark("text", {"text": {"field": "label"}}, color=MUTED, dy=-12, fontSize=10),
        x=logarithmic("x", "time", "s", "time of one call"),
        y=logarithmic("y", "rate", "", "tokens a second"),
    )


def roofline() -> Json:
    """Draw operations a second over operations a byte under the measured ceilings with their interval."""
    roof = {"detail": {"field": "roof"}}
    top = {"y": logarithmic("y", "roof_median", "FLOP/s", "operations a second")}
    label = {"y": number("roof_median"), "text": {"field": "label"}}
    legend = {"title": None, "orient": "top", "symbolStrokeColor": MUTED, "symbolFillColor": MUTED}
    shapes = {"domain": ["prefill", "decode"], "range": ["triangle-up", "circle"]}
    shape = {"field": "phase", "type": "nominal", "legend": legend, "scale": shapes}
    point = {"y": number("rate"), "color": COLOUR, "fill": COLOUR, "shape": shape}
    return chart(
        300,
        mark("area", roof | span("y", "roof_low", "roof_high"), data="roofs", color=MUTED, opacity=0.18),
        mark("line", roof | top, data="roofs", color=INK, strokeWidth=2),
        mark("text", label, data="labels", color=MUTED, align="right", dy=-10, fontSize=11),
        mark("rule", span("y", "low", "high") | {"color": COLOUR}, strokeWidth=2),
        mark("point", point, size=75, opacity=0.9, tooltip=TIP),
        x=logarithmic("x", "intensity", "", "FLOP a byte, of the least work"),
    )


def break_even() -> Json:
    """Draw the seconds that the build and so many tokens take, and where each meets the baseline."""
    line = {
        "x": logarithmic("x", "tokens", "", "tokens"),
        "y": logarithmic("y", "spent", "s", "build and run"),
        "color": COLOUR,
        "detail": {"field": "row"},
    }
    even = {"x": number("even"), "y": number("spent"), "color": COLOUR, "fill": {"value": PAPER}}
    colours = {"data": {"name": "rows"}, "key": "row", "fields": ["colour"]}
    return chart(
        240,
        mark("line", line, data="lines", strokeWidth=2) | {"transform": [{"lookup": "row", "from": colours}]},
        mark("rule", span("x", "low", "high") | {"y": number("spent")}, color=INK, strokeWidth=2),
        mark("point", even, size=80, strokeWidth=2, opacity=1, tooltip=TIP),
    )


def kernels() -> Json:
    """Draw each row's kernel time as shares of one."""
    share = number("share", stack="zero", axis={"title": None, "format": "%"}, scale={"domain": [0, 1]})
    origin = named("origin", [*ORIGINS])
    return chart(STEP, mark("bar", {"x": share, "color": origin, "order": number("order")}, **BAR), y=BACKEND)


def order() -> Json:
    """Draw each sample of one row where it came in its process."""
    sample = {"y": linear("time", "s", "time"), "color": named("process", [], "process")}
    return chart(
        220,
        mark("point", sample, size=14, filled=True, opacity=0.55, tooltip=TIP),
        x=number("at", axis={"title": "sample", "tickMinStep": 1}),
    )


def distribution() -> Json:
    """Draw the share of one row's samples that were no longer than a time."""
    process = {"color": named("process", [], "process"), "order": number("share")}
    return chart(
        220,
        mark("line", process, strokeWidth=2, tooltip=TIP),
        x=linear("time", "s", "time"),
        y=number("share", axis={"title": "of the samples", "format": "%"}),
    )


def clocks() -> Json:
    """Draw how far each clock ranged in each process, and its medians in the earlier and the later half."""
    half = {"y": number("mhz", scale={"zero": False}, axis={"title": "MHz"})}
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return chart(
        220,
        mark("rule", span("y", "low", "high"), strokeWidth=1.5, opacity=0.5, tooltip=TIP),
        mark("line", half | {"detail": {"field": "line"}}, data="halves", strokeWidth=2),
        mark("point", half, data="halves", filled=True, size=45, opacity=1, tooltip=TIP),
        x=number("process", scale={"zero": False, "padding": 30}, axis=axis),
        color=named("clock", ["SM", "memory"]),
    )


def course() -> Json:
    """Draw how the SM clock went while the row was timed, in each process."""
    process = {"color": named("process", [], "process"), "order": number("at")}
    return chart(
        220,
        mark("line", process, strokeWidth=2),
        mark("point", process, filled=True, size=30, opacity=1, tooltip=TIP),
        x=linear("at", "s", "since the first warm-up"),
        y=number("mhz", scale={"zero": False}, axis={"title": "MHz"}),
    )


DRAWINGS = (times, pareto, roofline, break_even, kernels, order, distribution, clocks, course)
CHARTS = {drawing.__name__: drawing() for drawing in DRAWINGS}
"""Each drawing's specification, by the name a card calls it."""
