"""Which tests stay together in one process where pytest-xdist runs several."""

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

DEVICE = (
    "test_compare.py",
    "test_tracking.py",
    "cli/test_build.py",
    "test_build_tuned.py",
)
"""Their commands measure, and a device is measured by one at a time."""
CONTESTANT = re.compile(r"\[(.+-(?:cpu|cuda)-b?float\d+)")


def pytest_configure() -> None:
    """Let what tests start be no part of this run: pytest-benchmark, for one, is off beside xdist."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """Hand out whole groups of tests, in the order they are collected in."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """Name the device, the contestant, whose engines several files load, or the file."""
    path, _, name = nodeid.partition("::")
    if path.endswith(DEVICE):
        return "device"
    contestant = CONTESTANT.search(name)
    return contestant[1] if contestant else path
