"""Run one job in a worker process and tell what became of it, whatever the worker does.

The worker leads a process group of its own, so that killing it takes everything it started along.
Its standard output and error go to a log; events come on a pipe that nothing else can write to.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from workbench import job as jobs
from workbench.job import Json, MeasureJob

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages `workbench`, `backends` and `models`; first on a worker's path."""
POLL_S = 0.2
"""How often a silent worker is looked at; rare enough to cost a timed CPU nothing."""
EXIT_S = 30.0
"""How long a worker that has reported everything may take to exit, or a killed one to disappear."""

LOGGED = ("crashed", "build_failed", "timeout", "oom")
"""Statuses that a log says more about than their reason does."""


@dataclass(frozen=True)
class Limits:
    """Seconds that each stage may take; entering a stage, even the same again, starts its time anew."""

    start: float = 120.0
    load: float = 600.0
    build: float = 1800.0
    gate: float = 900.0
    time: float | None = None
    """None: ten times the row's budget and ten minutes, since the floor of samples outlasts the budget."""

    def seconds(self, stage: str, job: object) -> float:
        """Return the limit of a stage of this job."""
        if stage == "time" and self.time is None:
            return 600.0 + 10.0 * (job.budget_s if isinstance(job, MeasureJob) else 0.0)
        return float(getattr(self, stage))


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: str
    """`ok` if the worker reported `done`, even where groups failed; else a status of `workbench.record`."""
    reason: str | None = None
    """One line, with the log's path."""
    result: Json | None = None
    """What came with `done`."""
    stage: str = "start"
    """The last stage entered."""

    @property
    def ok(self) -> bool:
        """Whether the job came to its end."""
        return self.status == "ok"


def run(
    job: object,
    *,
    log: Path,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    limits: Limits = Limits(),
    on_event: Callable[[Json], None] | None = None,
) -> Outcome:
    """Run a job of `workbench.job` to its end; `environment` is laid over this process's own.

    Events reach `on_event` as they come. Raises UserError if the worker says that the input is wrong or
    if `python` cannot be started; nothing else a worker does raises. The worker never outlives the call.
    """
    follower = _Follower(job, limits, on_event, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    process, pipe = _start(job, python, environment or {}, log)
    try:
        follower.follow(process, pipe)
    finally:
        _kill_group(process)
        os.close(pipe)
    return follower.outcome(process.returncode)


def _start(
    job: object, python: str, environment: Mapping[str, str], log: Path
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start the worker; returns it with the reading end of its pipe."""
    variables = {**os.environ, **environment}
    path = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
    # NVML, by which the parent sees GPUs, counts them so.
    variables.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    reading, writing = os.pipe()
    try:
        # A file, not a pipe: a worker that never reads its job cannot block this process.
        with tempfile.TemporaryFile() as stdin, log.open("ab") as output:
            stdin.write(json.dumps(jobs.to_json(job)).encode())
            stdin.seek(0)
            process = subprocess.Popen(
                [python, "-P", "-m", "workbench.worker", "--pipe", str(writing)],
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env=variables,
                start_new_session=True,
            )
    except OSError as error:
        os.close(reading)
        raise UserError(f"cannot start {python}: {error.strerror}; give a Python 3.11 or newer") from error
    finally:
        os.close(writing)
    return process, reading


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill whatever is left of the worker and of what it started, and collect it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left; macOS says so by PermissionError
    try:
        process.wait(EXIT_S)
    except subprocess.TimeoutExpired:
        pass  # stuck in a driver call, which not even SIGKILL ends


@dataclass
class _Follower:
    """Reads a worker's events, keeps its stage and its time limit, and judges its end."""

    job: object
    limits: Limits
    on_event: Callable[[Json], None] | None
    log: Path
    stage: str = "start"
    done: Json | None = None
    error: Json | None = None
    late: bool = False
    deadline: float = 0.0
    buffer: bytes = b""
    garbled: int = 0

    def follow(self, process: "subprocess.Popen[bytes]", pipe: int) -> None:
        """Return when the worker has ended or when its time is up."""
        self._restart_limit(self.limits.seconds("start", self.job))
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while (left := self.deadline - time.monotonic()) > 0:
                # Looked at before the pipe, so that what was written before the end is still read. The
                # worker's end counts, not the pipe's: something it started may hold the pipe open.
                ended = process.poll() is not None
                if selector.select(0 if ended else min(left, POLL_S)) and self._read(pipe):
                    continue
                if ended:
                    return
                time.sleep(POLL_S / 10)
        self.late = self.done is None

    def _read(self, pipe: int) -> bool:
        """Take what is in the pipe; returns False at its end."""
        chunk = os.read(pipe, 1 << 16)
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
                self._take(dict(event))
            except (ValueError, KeyError, TypeError):
                self.garbled += 1
        return bool(chunk)

    def _take(self, event: Json) -> None:
        kind = event["event"]
        if kind == "stage":
            self._restart_limit(self.limits.seconds(event["stage"], self.job))
            self.stage = event["stage"]
        elif kind == "done":
            self.done = event
            self._restart_limit(EXIT_S)
        elif kind == "error":
            self.error = self._explained(event)
            return
        elif kind == "failure":
            event = self._explained(event)
        if self.on_event is not None:
            self.on_event(event)

    def _explained(self, event: Json) -> Json:
        if os.environ.get("WORKBENCH_DEBUG") == "1":
            print(event.get("traceback", ""), file=sys.stderr)
        if event["status"] in LOGGED:
            event = {**event, "reason": f"{event['reason']} (log: {self.log})"}
        return event

    def _restart_limit(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def outcome(self, code: int | None) -> Outcome:
        """Judge how the worker ended; raises UserError if it says that the input is wrong."""
        if self.error is not None and self.error["status"] == "user":
            raise UserError(self.error["reason"])
        if self.done is not None:
            return Outcome("ok", result=self.done.get("result"), stage=self.stage)
        status, reason = self._end(code)
        return Outcome(status, reason, stage=self.stage)

    def _end(self, code: int | None) -> tuple[str, str]:
        if self.error is not None:
            return self.error["status"], self.error["reason"]
        where = f"in stage {self.stage}"
        if self.late:
            limit = self.limits.seconds(self.stage, self.job)
            return "timeout", f"no end after {limit:g} s {where} (log: {self.log})"
        if code is not None and code < 0:
            return "crashed", f"killed by {_signal_name(-code)} {where}{_hint(-code)} (log: {self.log})"
        last = _last_line(self.log)
        said = f": {last}" if last else ""
        return "crashed", f"exit code {code} without a result {where}{said} (log: {self.log})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hint(number: int) -> str:
    if number == signal.SIGKILL:
        return ", usually by the kernel for want of memory (see dmesg): try a smaller model, batch or context"
    return ""


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, cut to a readable length."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
