"""What a worker tells of its failure, even where its log cannot be written."""

import errno
import json
import os
import sys
from typing import Any

import pytest

from workbench.events import Events


class Full:
    """A log on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        pass


def test_a_failure_is_told_before_a_log_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    log: Any = Full()
    monkeypatch.setattr(sys, "stderr", log)
    events = Events(writer)
    with pytest.raises(OSError, match="No space left"):
        events.fail(OSError(errno.ENOSPC, "No space left on device"))
    events._file.close()
    with os.fdopen(reader) as told:
        event = json.loads(told.readline())
    assert event["status"] == "crashed"
    assert "No space left on device" in event["reason"]
