"""One run of `pytest --workbench`: our harness measures, pytest-benchmark records what it measured."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from models.errors import UserError, one_line
from workbench.caches import LOCKS, digest
from workbench.compare import measure, resolve
from workbench.comparing.entries import Entry, protocol
from workbench.comparing.source import prepare
from workbench.device.locks import DeviceLock
from workbench.job import Json
from workbench.options import INSTALL_TRACK, USAGE
from workbench.plan import PlannedRow
from workbench.progress import Progress
from workbench.ratios import samples
from workbench.record import Record, backend_name, device_kind, method
from workbench.report import row_title, short_title
from workbench.store import slug
from workbench.tracking import verdict_lines
from workbench.tracking.against import Judge
from workbench.tracking.saved import refuse_nothing_in_common, refuse_nothing_saved
from workbench.tracking.track import read_request
from workbench.tracking.verdict_lines import Judged


class RowFailed(Exception):
    """A row without a time, or slower than it may be."""


class TrackSession:
    """The hooks of one run; raises UserError where nothing can be run."""

    def __init__(self, config: pytest.Config) -> None:
        check(config)
        self.table = config.rootpath / "pyproject.toml"
        self.request = read_request(self.table)
        self.device, self.settings, self.groups = resolve(self.request)
        self.protocol = digest(method(protocol(self.settings)))
        self.fail_on_regression = config.getoption("workbench_fail_on") == "regression"
        against = config.getoption("workbench_against")
        judging = self.fail_on_regression or against is not None
        self.judge = Judge(against, self.request.results) if judging else None
        self.records: dict[str, Record] = {}
        """By the row's name, once they are measured."""
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(self.table)]
        self.set_storage(config)
        refuse_nothing_saved(config.option)
        if not config.option.collectonly:
            with DeviceLock(self.device, LOCKS):
                pass  # held again to measure: a device in use is told before pytest says anything

    def set_storage(self, config: pytest.Config) -> None:
        """Give each kind of device and each protocol a folder of its own in pytest-benchmark's storage."""
        given = config.option.benchmark_storage
        if not given.startswith("elasticsearch"):
            folder = f"{slug(self.device.name)}-{self.protocol[:8]}"
            config.option.benchmark_storage = f"{given.rstrip('/')}/{folder}"

    def pytest_report_header(self) -> str:
        """Say what is run where."""
        return f"workbench: {self.table}, {self.device.device} ({self.device.name}), protocol {self.protocol}"

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Collect the table as if it were a file of tests."""
        if file_path != self.table:
            return None
        table: pytest.Collector = Table.from_parent(parent, path=file_path, tracking=self)
        return table

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Measure the rows that were selected, in rounds and with progress, before any is replayed."""
        option = session.config.option
        broken = session.testsfailed and not option.continue_on_collection_errors
        rows = [item for item in session.items if isinstance(item, Row)]
        wanted = {item.name for item in rows if item.get_closest_marker("skip") is None}
        if not wanted or option.collectonly or broken:
            return
        with plain_errors():
            if option.benchmark_compare:
                compared = session.config._benchmarksession.compared_mapping  # type: ignore[attr-defined]
                refuse_nothing_in_common(compared, {item.nodeid for item in session.items})
            for record in measure(self.request, lambda entries: self.select(entries, wanted)):
                self.records[row_name(record.name, record)] = record

    def select(self, entries: list[Entry], wanted: set[str]) -> list[Entry]:
        """Keep the rows to be run; raises UserError where one could not be judged as asked for."""
        chosen = [entry for entry in entries if row_name(entry.contestant.name, entry.row) in wanted]
        return self.judge.settle(chosen) if self.judge else chosen

    def replay(self, name: str, readings: deque[float], benchmark: Any) -> None:
        """Let pytest-benchmark take a row's samples from its clock, one a round; raises RowFailed."""
        record = self.records.get(name)
        if record is None:
            reason = f"{name}: its engine runs in another process, and rows by slope are not tracked"
            readings += (0.0, 0.0)
            # By the fixture, which reports a test that never used it as an error of its own.
            benchmark.pedantic(fail, args=(reason,))
            return
        judged = self.judge.judge(record) if self.judge else None
        taken = [sample for process in samples(record) for sample in process]
        for sample in taken or [0.0]:
            readings += (0.0, sample)
        benchmark.extra_info.update(self.describe(record, judged))
        benchmark.pedantic(require_time, args=(record,), rounds=len(taken) or 1, iterations=1)
        if judged and judged.regressed and self.fail_on_regression:
            raise RowFailed(verdict_lines.sentence(judged))

    def describe(self, record: Record, judged: Judged | None) -> Json:
        """Return what is kept beside a row's samples."""
        names = ("run", "status", "backend", "options", "model", "weights", "dtype", "gpu", "versions")
        facts: Json = {name: getattr(record, name) for name in names}
        facts |= {"protocol": self.protocol, "processes": [len(taken) for taken in samples(record)]}
        return facts | ({"verdict": verdict_lines.facts(judged)} if judged else {})

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: Json) -> None:
        """Add what two files must share to be compared; the card and its driver are with each row."""
        # To compare, this is asked before anything is measured, and may be what writes the weights.
        held = nullcontext() if self.records else DeviceLock(self.device, LOCKS)
        with plain_errors(), Progress(Console(stderr=True)) as progress, held:
            source = prepare(self.settings.model, self.settings.dtype, progress)
            machine_info["workbench"] = {
                "device": device_kind(self.device.device, self.device.identity()),
                "protocol": self.protocol,
                "model": source.name,
                "weights": source.checksum,
                "dtype": self.settings.dtype,
                "steps": self.settings.workload.steps,
            }

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_benchmark_compare_machine_info(self, machine_info: Json, compared_benchmark: Json) -> None:
        """Refuse to compare with what is other work, another device or another protocol."""
        ours, theirs = machine_info["workbench"], compared_benchmark["machine_info"].get("workbench", {})
        unlike = [name for name in ours if ours[name] != theirs.get(name)]
        with plain_errors():
            if unlike:
                what = f"{unlike[0]}: {theirs.get(unlike[0])} there, {ours[unlike[0]]} here"
                raise UserError(f"--benchmark-compare: runs that differ cannot be compared: {what}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the verdicts."""
        if not self.judge or not self.records:
            return
        judged = [self.judge.judge(record) for record in self.records.values()]
        terminalreporter.section(f"workbench: against {self.judge.name}")
        for line in [*map(verdict_lines.sentence, judged), *verdict_lines.remarks(judged)]:
            terminalreporter.write_line(line)


class Table(pytest.File):
    """The table of pyproject.toml."""

    def __init__(self, *, tracking: TrackSession, **more: Any) -> None:
        super().__init__(**more)
        self.tracking = tracking

    def collect(self) -> Iterator[pytest.Item]:
        """List its rows, for each backend."""
        tracking = self.tracking
        for group in tracking.groups:
            for row in group.rows:
                for backend, options in tracking.request.backends or ():
                    yield make_row(self, tracking, row_name(backend_name(backend, options), row), row)


class Row(pytest.Function):
    """One row: to pytest-benchmark a test with the `benchmark` fixture."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Say where the row is written down: pytest names that line of one that is skipped."""
        return self.path, 0, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:  # noqa: ARG002
        """Show the reason of a failed row alone: no line of ours is at fault."""
        return str(excinfo.value) if isinstance(excinfo.value, RowFailed) else super().repr_failure(excinfo)


def make_row(parent: Table, tracking: TrackSession, name: str, row: PlannedRow) -> Row:
    """Make the test of one row, whose clock shows what was measured."""
    readings: deque[float] = deque()

    def recorded() -> float:
        """Return 0 at the start of a round, its sample at the end."""
        return readings.popleft()

    def test(benchmark: Any) -> None:
        tracking.replay(name, readings, benchmark)

    item: Row = Row.from_parent(parent, name=name, callobj=test)
    item.add_marker(pytest.mark.benchmark(timer=recorded, group=short_title(row)))
    return item


def fail(reason: str) -> NoReturn:
    """Stand for a row that was not measured; always raises RowFailed."""
    raise RowFailed(reason)


def require_time(record: Record) -> None:
    """Stand for the work of one round; raises RowFailed if the row has no time."""
    if not record.timed:
        raise RowFailed(f"{row_title(record)}: {record.status}: {record.reason}")


def row_name(backend: str, row: Record | PlannedRow) -> str:
    """Name a row as a test: `eager-decode-b1-c128`."""
    return f"{backend}-{short_title(row)}".replace(" ", "-")


def check(config: pytest.Config) -> None:
    """Refuse what cannot work; raises UserError."""
    if not hasattr(config.option, "benchmark_storage"):
        raise UserError(f"pytest-benchmark is missing or switched off: {INSTALL_TRACK}")
    if config.getoption("dist", "no") != "no":
        raise UserError("rows share one device, so they are never run side by side: leave out -n and --dist")


@contextmanager
def plain_errors() -> Iterator[None]:
    """End pytest with one line and exit code 2 where a user's mistake is found."""
    try:
        yield
    except UserError as error:
        pytest.exit(f"Error: {one_line(error)}", returncode=USAGE)
