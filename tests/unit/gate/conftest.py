"""One golden for all tests of the gate."""

import pytest

from tests.unit.gate.answers import make_golden
from workbench.checking.golden import Golden


@pytest.fixture(scope="session")
def golden() -> Golden:
    return make_golden()
