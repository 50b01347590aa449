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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from models.errors import UserError
from workbench import job as jobs
from workbench.caches import bytecode_environment
from workbench.events import read_event
from workbench.job import Json, MeasureJob
from workbench.packages import import_folder

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
    trace: float = 300.0

    def seconds(self, stage: str, job: object) -> float:
        """Return the limit of a stage of this job."""
        if stage == "time" and self.time is None:
            return 600.0 + 10.0 * (job.budget_s if isinstance(job, MeasureJob) else 0.0)
        return float(getattr(self, stage))


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: str
    """`ok` if the worker reported `done`; else a status of `workbench.record`."""
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
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run a job of `workbench.job` to its end; `environment` is laid over this process's own.

    Events reach `on_event` as they come, and what it raises ends the worker and is raised again. Raises
    UserError if the worker says that the input is wrong, if `python` cannot be started, or if the log or
    another file cannot be written, and KeyboardInterrupt soon after `stopped` says so; nothing else a worker
    does raises. The worker never outlives the call.
    """
    follower = _Follower(job, limits, on_event, log, stopped)
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
    variables = _variables(python, environment)
    with ExitStack() as files:
        stdin = files.enter_context(_job_file(json.dumps(jobs.to_json(job)).encode()))
        output = files.enter_context(_log_file(log))
        try:
            reading, writing = os.pipe()
        except OSError as error:
            raise UserError(f"cannot open a pipe: {error.strerror}; close other programs") from error
        files.callback(os.close, writing)
        try:
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
            raise UserError(
                f"cannot start {python}: {error.strerror}; give a Python 3.11 or newer"
            ) from error
    return process, reading


def _variables(python: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's whole environment."""
    variables = {**os.environ, **bytecode_environment(python), **environment}
    path = variables.get("PYTHONPATH")
    own = str(import_folder(python))
    variables["PYTHONPATH"] = f"{own}{os.pathsep}{path}" if path else own
    # NVML, by which the parent sees GPUs, counts them so, whatever order the user prefers.
    variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return variables


def _job_file(content: bytes) -> IO[bytes]:
    """Return a file to read the job from: unlike a pipe, it blocks nobody if a worker never reads it."""
    folder = "$TMPDIR"
    try:
        folder = tempfile.gettempdir()
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the caller closes it)
        try:
            file.write(content)
            file.seek(0)  # flushes
        except OSError:
            file.close()
            raise
    except OSError as error:
        raise _unwritable(f"a file in {folder}", error) from error
    return file


def _log_file(log: Path) -> IO[bytes]:
    """Open a log anew, so that nothing an earlier run said is taken for this one's."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as error:
        raise _unwritable(f"the log {log}", error) from error


def _unwritable(what: str, error: OSError) -> UserError:
    hint = "free space there or make it writable, or set WORKBENCH_CACHE if it is in the cache"
    return UserError(f"cannot write {what}: {error.strerror}; {hint}")


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
    stopped: Callable[[], bool]
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
                if self.stopped():
                    raise KeyboardInterrupt
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
            event = read_event(line)
            if event is None:
                self.garbled += 1
            else:
                self._take(event)
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
            if os.environ.get("WORKBENCH_DEBUG") == "1":
                print(event.get("traceback", ""), file=sys.stderr)
            self.error = event
            return
        if self.on_event is not None:
            self.on_event(event)

    def _restart_limit(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def outcome(self, code: int | None) -> Outcome:
        """Judge how the worker ended; raises UserError if it says that the input is wrong."""
        if self.error is not None and self.error["status"] == "user":
            raise UserError(self.error["reason"])
        if self.done is not None:
            return Outcome("ok", result=self.done.get("result"), stage=self.stage)
        status, reason = self._end(code)
        if self.garbled:
            reason += f"; {self.garbled} of its events could not be read"
        if status in LOGGED:
            reason += f" (log: {self.log})"
        return Outcome(status, reason, stage=self.stage)

    def _end(self, code: int | None) -> tuple[str, str]:
        if self.error is not None:
            return self.error["status"], self.error["reason"]
        where = f"in stage {self.stage}"
        if self.late:
            return "timeout", f"no end after {self.limits.seconds(self.stage, self.job):g} s {where}"
        if code is not None and code < 0:
            return "crashed", f"killed by {_signal_name(-code)} {where}{_hint(-code)}"
        last = _last_line(self.log)
        said = f": {last}" if last else ""
        return "crashed", f"exit code {code} without a result {where}{said}"


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
