"""What the environment tells compilers is part of what a row was made by."""

import pytest

from backends import variables
from backends.variables import set_variables


@pytest.fixture(autouse=True)
def start(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the process was started with, which is nothing yet."""
    found: dict[str, str] = {}
    monkeypatch.setattr(variables, "AT_START", found)
    return found


def test_nothing_set_is_no_version() -> None:
    assert set_variables() == {}


def test_variables_are_named_in_order_with_their_values(start: dict[str, str]) -> None:
    start["XLA_FLAGS"] = "--xla_dump_to=/x"
    start["TORCHINDUCTOR_FREEZING"] = "1"
    start["HOMELAND"] = "1"
    assert set_variables() == {"environment": "TORCHINDUCTOR_FREEZING=1 XLA_FLAGS=--xla_dump_to=/x"}
    assert set_variables(("TORCH",)) == {"environment": "TORCHINDUCTOR_FREEZING=1"}


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "OMP_NUM_THREADS"])
def test_what_workers_are_given_anyway_is_left_out(name: str, start: dict[str, str]) -> None:
    start[name] = "7"
    assert set_variables() == {}
