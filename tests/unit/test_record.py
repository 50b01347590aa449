"""Records: written, read back, and told apart."""

import dataclasses
import json

import pytest

from tests.unit.builders import record
from workbench.record import SCHEMA, backend_name, device_identity, from_json, row_key, to_json


@pytest.mark.parametrize(
    "row", [record(), record(status="wrong"), record(phase="prefill", prompt=4, context=None)]
)
def test_record_survives_json(row: object) -> None:
    assert from_json(json.loads(json.dumps(to_json(row)))) == row  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "unknown schema 99"),
        ({"schema": None}, "unknown schema None"),
        ({"status": "fine"}, "unknown status"),
        ({"phase": "foo"}, "unknown phase"),
        ({"status": "wrong"}, "does not go with"),
        ({"time_s": None}, "does not go with"),
        ({"surprise": 1}, "not a record"),
        ({"batch": "1"}, "batch is '1'"),
        ({"batch": None}, "batch is None"),
        ({"context": 128.5}, "context is 128.5"),
        ({"prompt": [64]}, "prompt is"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_is_no_record_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(to_json(record()) | changes)


@pytest.mark.parametrize("place", ["time_s", "processes"])
@pytest.mark.parametrize("value", ["0.1", None, 0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused(place: str, value: object) -> None:
    row = to_json(record())
    if place == "time_s":
        row["time_s"]["low"] = value
    else:
        row["processes"][0]["samples_s"] = [value, 1.0]
    with pytest.raises(ValueError, match="no number of seconds"):
        from_json(row)


def test_record_without_a_field_is_refused() -> None:
    row = to_json(record())
    del row["processes"]
    with pytest.raises(ValueError, match="processes"):
        from_json(row)


def test_record_of_the_first_schema_is_read() -> None:
    row = to_json(record()) | {"schema": 1}
    for name in ("fits", "no_kernels", "least_work", "parts"):
        del row[name]
    for run in row["processes"]:
        del run["timer_check"]
    assert from_json(row) == record()
    assert from_json(row).schema == SCHEMA


@pytest.mark.parametrize(
    "change", [{"power_limit_w": 500}, {"ecc": False}, {"max_sm_mhz": 1755}, {"power_limit_w": None}]
)
def test_card_at_another_limit_is_another_kind_of_device(change: dict[str, object]) -> None:
    gpu = {"name": "NVIDIA H200", "uuid": "GPU-a", "power_limit_w": 700, "ecc": True, "max_sm_mhz": 1980}
    row = record(device="cuda:0", gpu=gpu)
    assert device_identity(record(device="cuda:1", gpu=gpu | {"uuid": "GPU-b"})) == device_identity(row)
    assert device_identity(record(device="cuda:0", gpu=gpu | change)) != device_identity(row)
    assert row_key(record(device="cuda:0", gpu=gpu | change)) != row_key(row)


def test_key_is_the_same_for_the_same_work_measured_again() -> None:
    again = dataclasses.replace(record(), run="later", created="2027", reason="x", warnings=("w",))
    assert row_key(again) == row_key(record())


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "compile"},
        {"options": {"mode": "default"}},
        {"weights": "xyz"},
        {"context": 256},
        {"protocol": {"gate": 2}},
        {"versions": {"torch": "2.12"}},
        {"gpu": {"name": "Test CPU", "threads": 4}},
        {"clock": "slope"},
    ],
)
def test_key_tells_unlike_work_apart(changes: dict[str, object]) -> None:
    assert row_key(record(**changes)) != row_key(record())


def test_backend_is_named_as_typed() -> None:
    assert backend_name("eager", {}) == "eager"
    assert backend_name("compile", {"mode": "default", "graph": ""}) == "compile[graph,mode=default]"
