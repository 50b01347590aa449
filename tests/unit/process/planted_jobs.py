"""Jobs of a backend that fails as it is told to."""

from backends.contract import Shapes
from workbench import packages, process
from workbench.job import GroupJob, MeasureJob, RowJob
from workbench.process import Limits, Outcome

PLUGINS = packages.ROOT / "tests" / "plugins"
ENVIRONMENT = {"PYTHONPATH": str(PLUGINS)}
AMPLE = Limits()
SHORT = Limits(load=3, build=3, gate=3, time=3)
"""For what hangs; whatever comes to an end by itself has the time it wants, on a busy machine too."""


class Worker:
    """Runs jobs of the planted backend and keeps their events."""

    def __init__(self, model, log):
        self.model = model
        self.log = log
        self.events = []

    def job(self, rows=1, kernels=False, **options):
        jobs = tuple(RowJob(f"row{number + 1}", "decode", 4, 32) for number in range(rows))
        group = GroupJob(Shapes(1, (4,), 64), "no golden", jobs)
        return MeasureJob("planted", options, str(self.model), "float32", "cpu", 0, 0.05, group, kernels)

    def run(self, rows=1, limits=AMPLE, **options) -> Outcome:
        return self.run_job(self.job(rows, **options), limits)

    def run_job(self, job, limits=AMPLE) -> Outcome:
        return process.run(
            job, log=self.log, environment=ENVIRONMENT, limits=limits, on_event=self.events.append
        )

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    @property
    def rows(self):
        return {event["result"]["key"]: event["result"] for event in self.of("row")}
