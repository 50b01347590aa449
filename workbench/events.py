"""The events on the pipe: how the worker writes them, failures included, and how the parent reads them."""

import json
import os
import sys
import time
import traceback
from typing import Any

from backends.contract import Unsupported
from models.errors import UserError, telling_line
from workbench import job as jobs
from workbench.job import Finding, Json, RowResult

REASON_LENGTH = 300
"""Characters of an exception that a reason keeps; the log has it whole."""
PROGRESS_S = 1.0
"""Progress is told no more often, so that nobody wakes up beside the samples for it."""


class Events:
    """Writes events, and knows the stage the work is in."""

    def __init__(self, pipe: int) -> None:
        os.set_inheritable(pipe, False)
        self._file = os.fdopen(pipe, "wb")
        self._told = 0.0
        self.stage = "start"

    def send(self, event: str, **fields: Any) -> None:
        """Write one event; it is in the pipe when this returns."""
        self._file.write(json.dumps({"event": event, **fields}).encode() + b"\n")
        self._file.flush()

    def enter(self, stage: str, row: str | None = None) -> None:
        """Say that a stage begins, and with it the time that it may take."""
        self.stage = stage
        self.send("stage", stage=stage, row=row)

    def progress(self, done: int, row: str) -> None:
        """Say how many samples of a row there are, once a second at most, and when the first is to come."""
        now = time.monotonic()
        if not done or now - self._told >= PROGRESS_S:
            self._told = now
            self.send("progress", row=row, done=done)

    def row(self, result: RowResult) -> None:
        """Hand over what was measured of one row."""
        self.send("row", result=jobs.to_json(result))

    def finding(self, finding: Finding) -> None:
        """Hand over what was found out about a row that was sent before."""
        self.send("finding", result=jobs.to_json(finding))

    def fail(self, error: BaseException) -> None:
        """Say that the job failed, and how; the log gets the traceback."""
        status, reason = classify(error, self.stage)
        trace = "".join(traceback.format_exception(error))
        self.send("error", status=status, reason=reason, traceback=trace)
        print(trace, file=sys.stderr, flush=True)  # last: the log may be on the very disk that is full


_FIELDS: dict[str, tuple[str, ...]] = {
    "stage": ("stage",),
    "row": ("result",),
    "finding": ("result",),
    "progress": ("row", "done"),
    "error": ("status", "reason"),
    "done": (),
}
"""What an event of each kind must have."""


def read_event(line: bytes) -> Json | None:
    """Read an event as `workbench.job` has it; None if it is none, as a backend may have got at the pipe."""
    try:
        event = dict(json.loads(line))
        known = all(name in event for name in _FIELDS[event["event"]])
        if event["event"] == "row":
            jobs.read_row_result(event["result"])
        elif event["event"] == "finding":
            jobs.read_finding(event["result"])
        elif event["event"] == "stage":
            known = event["stage"] in jobs.STAGES
    except (ValueError, KeyError, TypeError):
        return None
    return event if known else None


def classify(error: BaseException, stage: str) -> tuple[str, str]:
    """Return the status and the one-line reason of an exception that was raised in a stage."""
    if isinstance(error, UserError):
        return "user", str(error)
    if isinstance(error, Unsupported):
        return "unsupported", _shorten(str(error))
    reason = _shorten(f"{type(error).__name__}: {error}")
    if _is_out_of_memory(error):
        return "oom", f"{reason}; try a smaller model, batch or context"
    return ("build_failed" if stage == "build" else "crashed"), reason


def _is_out_of_memory(error: BaseException) -> bool:
    # Known by their words: the frameworks' own types cannot be imported here.
    words = ("out of memory", "outofmemory", "resource_exhausted", "can't allocate memory")
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _shorten(text: str) -> str:
    """Return what says most of a text, as long as a reason may be."""
    line = telling_line(text)
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
