"""A worker for the planted backend, with a cache of its own."""

import pytest

from models.weights import write_preset
from tests.unit.process.planted_jobs import Worker


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_preset("tiny", "float32", folder)
    return folder


@pytest.fixture
def worker(model, tmp_path):
    return Worker(model, tmp_path / "logs" / "worker.log")
