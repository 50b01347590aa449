"""What the environment tells compilers is part of what a row was made by."""

import pytest

from backends.variables import set_variables


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in set_variables().get("environment", "").split():
        monkeypatch.delenv(variable.partition("=")[0])


def test_nothing_set_is_no_version() -> None:
    assert set_variables() == {}


def test_variables_are_named_in_order_with_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    monkeypatch.setenv("HOMELAND", "1")
    assert set_variables() == {"environment": "TORCHINDUCTOR_FREEZING=1 XLA_FLAGS=--xla_dump_to=/x"}
    assert set_variables(("TORCH",)) == {"environment": "TORCHINDUCTOR_FREEZING=1"}


@pytest.mark.parametrize("name", ["TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "OMP_NUM_THREADS"])
def test_what_workers_are_given_anyway_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    assert set_variables() == {}
