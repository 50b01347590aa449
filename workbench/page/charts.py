"""The drawings as Vega-Lite: what is drawn where. Data come by name, colours from the page's style sheet.

Numbers are SI; axes write them with a prefix (`2.5 ms`). Colours are CSS variables, so that the theme can
change without drawing anew.
"""

from typing import Any

Json = dict[str, Any]

INK, MUTED, PAPER = "var(--ink)", "var(--muted)", "var(--paper)"
COLOUR: Json = {"field": "colour", "type": "nominal", "scale": None}
TIP: Json = {"content": "data"}


def axis(unit: str, title: str | None = None, **more: Any) -> Json:
    """Write an axis' numbers with SI prefixes."""
    plain = "format(datum.value, '.3~s')"
    spaced = f"replace({plain}, regexp('([^0-9.]?)$'), ' $1') + '{unit}'"
    return {"title": title, "labelExpr": spaced if unit else plain, **more}


def number(field: str, **more: Any) -> Json:
    """Place by a number."""
    return {"field": field, "type": "quantitative", **more}


def logarithmic(channel: str, field: str, unit: str, title: str) -> Json:
    """Place by a number on a logarithmic axis that does not begin at zero; the wider, the fewer ticks it has."""
    decades = f"log(domain('{channel}')[1] / domain('{channel}')[0]) / LN10"
    first = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
    shown = f"{decades} > 3 ? {first} == 1 : {decades} > 0.8 ? indexof([1, 2, 5], {first}) >= 0 : true"
    scale = {"type": "log", "nice": False, "padding": 14}
    marks = axis(unit, title, labelOverlap="greedy", gridOpacity={"condition": {"test": shown, "value": 1}, "value": 0})
    return number(field, scale=scale, axis={**marks, "labelExpr": f"({shown}) ? {marks['labelExpr']} : ''", "ticks": False})


def layers(height: int | Json, *marks: Json, **more: Any) -> Json:
    """Draw marks above one another, as wide as the page lets them be; the page's script counts steps."""
    return {"width": "container", "height": height, "data": {"name": "rows"}, "layer": list(marks), **more}


def mark(kind: str, _data: str | None = None, _encoding: Json | None = None, **more: Any) -> Json:
    """Draw one kind of mark, of the rows unless other data are named."""
    found: Json = {"mark": {"type": kind, **more}, "encoding": _encoding or {}}
    return found | ({"data": {"name": _data}} if _data else {})


def times() -> Json:
    """Draw a bar for each backend from zero, its interval, and the least time the ceilings allow."""
    low, high = number("low"), {"field": "high"}
    return layers(
        {"step": 34},
        mark("bar", _encoding={"x": number("time", axis=axis("s")), "color": COLOUR}, height={"band": 0.62},
             cornerRadiusEnd=3, opacity=0.85, tooltip=TIP),
        mark("rule", _encoding={"x": low, "x2": high}, color=INK, strokeWidth=2),
        mark("tick", _encoding={"x": low}, color=INK, size=10, thickness=2),
        mark("tick", _encoding={"x": number("high")}, color=INK, size=10, thickness=2),
        mark("text", _encoding={"x": number("high"), "text": {"field": "label"}}, color=INK, align="left", dx=7,
             fontWeight=600),
        mark("tick", _encoding={"x": number("room")}, opacity=0),
        mark("tick", _encoding={"x": number("least")}, color=MUTED, size=26, thickness=2, tooltip=TIP),
        encoding={"y": {"field": "backend", "type": "nominal", "sort": None, "axis": {"title": None}}},
    )  # fmt: skip


def pareto() -> Json:
    """Draw tokens a second over time, a line for each backend through its batches, and the front."""
    x, y = logarithmic("x", "time", "s", "time of one call"), logarithmic("y", "rate", "", "tokens a second")
    return layers(
        280,
        mark("line", "front", {"order": number("time")}, color=MUTED, strokeDash=[5, 4], strokeWidth=1.5,
             interpolate="step-after"),
        mark("line", _encoding={"color": COLOUR, "detail": {"field": "backend"}, "order": number("batch")},
             strokeWidth=1.5, opacity=0.6),
        mark("rule", _encoding={"x": number("low"), "x2": {"field": "high"}, "color": COLOUR}),
        mark("rule", _encoding={"y": number("rate_low"), "y2": {"field": "rate_high"}, "color": COLOUR}),
        mark("point", _encoding={"color": COLOUR, "fill": {
            "condition": {"test": "datum.front", "field": "colour", "type": "nominal", "scale": None}, "value": PAPER,
        }}, size=70, strokeWidth=2, opacity=1, tooltip=TIP),
        mark("text", _encoding={"text": {"field": "label"}}, color=MUTED, dy=-12, fontSize=10),
        encoding={"x": x, "y": y},
    )  # fmt: skip


def roofline() -> Json:
    """Draw operations a second over operations a byte under the measured ceilings with their interval."""
    x = logarithmic("x", "intensity", "", "FLOP a byte, of the least work")
    roof = {"y": logarithmic("y", "roof_median", "FLOP/s", "operations a second"), "detail": {"field": "roof"}}
    band = {"y": number("roof_low"), "y2": {"field": "roof_high"}, "detail": {"field": "roof"}}
    end = {"y": number("roof_median"), "text": {"field": "label"}}
    shape = {"field": "phase", "type": "nominal", "legend": {"title": None, "orient": "top", "symbolStrokeColor": MUTED, "symbolFillColor": MUTED},
             "scale": {"domain": ["prefill", "decode"], "range": ["triangle-up", "circle"]}}  # fmt: skip
    return layers(
        300,
        mark("area", "roofs", band, color=MUTED, opacity=0.18),
        mark("line", "roofs", roof, color=INK, strokeWidth=2),
        mark("text", "labels", end, color=MUTED, align="right", dy=-10, fontSize=11),
        mark("rule", _encoding={"y": number("low"), "y2": {"field": "high"}, "color": COLOUR}, strokeWidth=2),
        mark("point", _encoding={"y": number("rate"), "color": COLOUR, "fill": COLOUR, "shape": shape},
             size=75, opacity=0.9, tooltip=TIP),
        encoding={"x": x},
    )  # fmt: skip


def break_even() -> Json:
    """Draw the seconds that the build and so many tokens take, and where each meets the baseline."""
    x = logarithmic("x", "tokens", "", "tokens")
    y = logarithmic("y", "spent", "s", "build and run")
    even = {"x": number("even"), "y": number("spent"), "color": COLOUR}
    return layers(
        240,
        {**mark("line", "lines", {"x": x, "y": y, "color": COLOUR, "detail": {"field": "row"}}, strokeWidth=2),
         "transform": [{"lookup": "row", "from": {"data": {"name": "rows"}, "key": "row", "fields": ["colour"]}}]},
        mark("rule", _encoding={"x": number("low"), "x2": {"field": "high"}, "y": number("spent")}, color=INK,
             strokeWidth=2),
        mark("point", _encoding={**even, "fill": {"value": PAPER}}, size=80, strokeWidth=2, opacity=1, tooltip=TIP),
    )  # fmt: skip


def kernels() -> Json:
    """Draw each row's kernel time as shares of one."""
    colour = {
        "field": "origin",
        "type": "nominal",
        "legend": {"title": None, "orient": "top"},
        "scale": {"domain": ["vendor", "framework", "generated"], "range": [f"var(--backend-{i})" for i in (0, 1, 2)]},
    }
    x = number("share", stack="zero", axis={"title": None, "format": "%"}, scale={"domain": [0, 1]})
    return layers(
        {"step": 34},
        mark("bar", _encoding={"x": x, "color": colour, "order": number("order")}, height={"band": 0.62}, tooltip=TIP),
        encoding={"y": {"field": "backend", "type": "nominal", "sort": None, "axis": {"title": None}}},
    )


PROCESS: Json = {
    "field": "process",
    "type": "ordinal",
    "legend": {"title": "process", "orient": "top"},
    "scale": {"range": [f"var(--backend-{index})" for index in range(10)]},
}


def order() -> Json:
    """Draw each sample of one row where it came in its process."""
    y = number("time", scale={"zero": False}, axis=axis("s", "time"))
    return layers(
        220,
        mark("point", _encoding={"y": y, "color": PROCESS}, size=14, filled=True, opacity=0.55, tooltip=TIP),
        encoding={"x": number("at", axis={"title": "sample", "tickMinStep": 1})},
    )


def distribution() -> Json:
    """Draw the share of one row's samples that were no longer than a time."""
    x = number("time", scale={"zero": False}, axis=axis("s", "time"))
    y = number("share", axis={"title": "of the samples", "format": "%"})
    return layers(
        220, mark("line", _encoding={"x": x, "y": y, "color": PROCESS, "order": number("share")}, strokeWidth=2, tooltip=TIP)
    )


def clocks() -> Json:
    """Draw how far each clock ranged in each process, and its medians in the earlier and the later half."""
    colour = {
        "field": "clock",
        "type": "nominal",
        "legend": {"title": None, "orient": "top"},
        "scale": {"domain": ["SM", "memory"], "range": ["var(--backend-0)", "var(--backend-1)"]},
    }
    y = number("mhz", scale={"zero": False}, axis={"title": "MHz"})
    x = number("process", scale={"zero": False, "padding": 30}, axis={"tickMinStep": 1, "format": "d", "grid": False})
    return layers(
        220,
        mark("rule", _encoding={"y": number("low"), "y2": {"field": "high"}}, strokeWidth=1.5, opacity=0.5, tooltip=TIP),
        mark("line", "halves", {"y": y, "detail": {"field": "line"}}, strokeWidth=2),
        mark("point", "halves", {"y": y}, filled=True, size=45, opacity=1, tooltip=TIP),
        encoding={"x": x, "color": colour},
    )  # fmt: skip


CHARTS = {
    chart.__name__: chart for chart in (times, pareto, roofline, break_even, kernels, order, distribution, clocks)
}
"""Each drawing's specification, by the name a card calls it."""
