"""What the drawings of a page say: front, roofline, times, kernels."""

from typing import Any

import pytest

from models.config import PRESETS
from models.work import decode_work, prefill_work, weight_bytes
from tests.unit.builders import record
from tests.unit.page.sections import sections_of
from workbench.page.break_even import break_even_cards
from workbench.page.charts import CHARTS
from workbench.page.kernel_shares import kernel_cards
from workbench.page.pareto import find_front, pareto_cards
from workbench.page.render import compiled
from workbench.page.roofline import roof_points, roofline_cards, work_of
from workbench.page.times import time_cards
from workbench.report import MIXED

CEILINGS = {
    "bandwidth_bytes_per_s": {"low": 90.0, "median": 100.0, "high": 110.0},
    "flops_per_s": {"low": 900.0, "median": 1000.0, "high": 1100.0},
}
KERNELS = {
    "busy_s": 0.9,
    "span_s": 1.0,
    "gaps_s": 0.1,
    "launches": 7.0,
    "enqueue_s": 0.2,
    "shares": {"vendor": 0.25, "framework": 0.0, "generated": 0.75},
    "kernels": [{"name": "triton_x", "count": 1.0, "total_s": 0.5, "share": 0.5, "origin": "generated"}],
}


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 10)], [True]),
        ([(1, 10), (2, 5)], [True, False]),
        ([(1, 10), (2, 20)], [True, True]),
        ([(1, 10), (1, 20)], [False, True]),
        ([(1, 10), (1, 10)], [True, True]),
        ([(1, 10), (2, 10)], [True, False]),
    ],
)
def test_front_has_what_nothing_else_beats_in_both(
    points: list[tuple[float, float]], front: list[bool]
) -> None:
    assert find_front(points) == front


def test_pareto_joins_the_batches_of_one_length_on_one_device() -> None:
    rows = [record(), record(batch=8, samples=(2.0, 2.0)), record(context=256), record("x", status="oom")]
    cards = pareto_cards(sections_of(*rows))
    assert [[point["label"] for point in card.rows] for card in cards] == [["b1", "b8"], [""]]
    rates = [(point["rate"], point["time"]) for point in cards[0].rows]
    assert rates == [(1.0, 1.0), (4.0, 2.0)]
    assert [point["time"] for point in cards[0].more["front"]] == [1.0, 2.0]


def test_work_is_the_records_own_where_it_has_it() -> None:
    found = work_of(record(model="my-folder", least_work={"bytes": 10, "flops": 30}))
    assert found is not None
    assert (found.bytes, found.flops) == (10, 30)


def test_work_of_an_older_record_is_counted_from_its_preset() -> None:
    config = PRESETS["tiny"]
    memory = {"weights": weight_bytes(config, "float32")}
    decode = work_of(record(peak_bytes=memory))
    whole = decode_work(config, "float32", 1, 128, 32)
    assert decode is not None
    assert (decode.bytes, decode.flops) == (whole.bytes // 32, whole.flops // 32)
    prefill = record(peak_bytes=memory, phase="prefill", prompt=64, context=None, steps=None)
    assert work_of(prefill) == prefill_work(config, "float32", 1, 64)


@pytest.mark.parametrize("change", [{"model": "my-folder"}, {"peak_bytes": {"weights": 5}}])
def test_work_of_an_older_record_of_another_model_is_unknown_and_said_to_be(change: dict[str, Any]) -> None:
    row = record(**change)
    assert work_of(row) is None
    (card,) = roofline_cards(sections_of(row))
    assert card.rows == []
    assert "not drawn" in card.notes[0]
    assert "eager decode b1 c128" in card.notes[0]


def test_roof_is_the_lower_of_bandwidth_and_products_and_covers_every_row() -> None:
    points = roof_points(CEILINGS, [0.5, 400.0], "roof")
    assert points[0]["intensity"] < 0.5
    assert points[-1]["intensity"] > 400.0
    for point in points:
        assert point["roof_median"] == pytest.approx(min(1000.0, 100.0 * point["intensity"]))
        assert point["roof_low"] < point["roof_median"] < point["roof_high"]


def test_roofline_places_a_row_by_its_least_work_and_its_time() -> None:
    row = record(samples=(2.0, 2.0), least_work={"bytes": 10, "flops": 30}, ceilings=CEILINGS)
    (card,) = roofline_cards(sections_of(row))
    (point,) = card.rows
    assert (point["intensity"], point["rate"]) == (3.0, 15.0)
    assert len(card.more["labels"]) == 1
    assert "100 B/s" in card.text


def test_times_name_rows_without_one_and_the_least_time() -> None:
    fast = record("compile", (0.5, 0.5), limit_share=0.5)
    (card,) = time_cards(sections_of(record(), fast, record("third", status="oom")))
    assert [row["backend"] for row in card.rows] == ["compile", "eager"]
    assert card.rows[0]["least"] == 0.25
    assert card.rows[1]["least"] is None
    assert card.notes == ["third: oom"]
    assert card.as_json()["members"] == [0, 1, 2]
    assert "compile is fastest" in card.lead


def test_answer_and_break_even_of_rows_of_different_calls_say_so() -> None:
    built = {"cold": 1.0, "warm": 1.0}
    first, second = record(build_s=built), record("compile", (0.5, 0.5), build_s=built, run="another")
    for card in (*time_cards(sections_of(first, second)), *break_even_cards(sections_of(first, second))):
        assert card.notes == [MIXED]
    (alone,) = time_cards(sections_of(first, record("third", status="oom", run="another")))
    assert MIXED not in alone.notes


def test_kernel_shares_are_drawn_of_rows_that_were_traced() -> None:
    assert kernel_cards(sections_of(record())) == []
    (card,) = kernel_cards(
        sections_of(record(device="cuda:0", kernels=KERNELS), record("b", device="cuda:0"))
    )
    assert [(row["origin"], row["share"]) for row in card.rows] == [
        ("vendor", 0.25),
        ("framework", 0.0),
        ("generated", 0.75),
    ]
    assert any("triton_x" in line for line in card.listing)
    assert any("b: not traced" in line for line in card.listing)


def test_every_drawing_names_data_that_cards_have() -> None:
    named = {layer["data"]["name"] for chart in CHARTS.values() for layer in chart["layer"]}
    assert named == {"rows", "front", "roofs", "labels", "lines", "halves"}


def test_every_drawing_is_compiled_to_take_the_data_that_it_names() -> None:
    for name, drawing in compiled().items():
        taken = {each["name"] for each in drawing["data"] if "source" not in each}
        assert taken == {"rows"} | {layer["data"]["name"] for layer in CHARTS[name]["layer"]}
        assert not any("values" in each for each in drawing["data"])
        assert drawing["$schema"].startswith("https://vega.github.io/schema/vega/v")
