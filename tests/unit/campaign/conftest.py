"""Campaigns whose workers are stood in for."""

from pathlib import Path

import pytest

from tests.unit.campaign.workers import CPU, Call, Workers
from workbench.comparing import campaign, golden_files, turn
from workbench.device.watch import Watch


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workers:
    found = Workers()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for module in (campaign, golden_files, turn):
        monkeypatch.setattr(module, "run", found.run)
    monkeypatch.setattr(turn, "foreign_work", lambda device: ())
    monkeypatch.setattr(turn, "Watch", lambda device: Watch(CPU))
    return found


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return Call(tmp_path)
