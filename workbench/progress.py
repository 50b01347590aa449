"""What the user sees while work goes on: one line on stderr with the time left, none off a terminal."""

from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from workbench import units

REFRESHES_PER_S = 1
"""Drawing takes time from the very CPU that may be timed."""


class TimeLeft(ProgressColumn):
    """The time left: a piece takes as long as those so far did on average, or before the first as guessed."""

    def render(self, task: Task) -> Text:
        """Write it, or nothing where no number of pieces is known."""
        if task.total is None or task.remaining is None or task.elapsed is None:
            return Text("")
        done = int(task.completed)
        guess = task.fields["guess_s"] * task.total
        whole = task.fields["last_s"] / done * task.total if done else guess
        left = max(whole - task.elapsed, 0.0)
        return Text(f"about {units.duration(left)} left" if task.remaining else "")


class Progress:
    """Progress of one command."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            transient=True,
            refresh_per_second=REFRESHES_PER_S,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, guess_s=0.0, last_s=0.0)

    def __enter__(self) -> "Progress":
        """Show the line."""
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self.bar.stop()

    def say(self, description: str) -> None:
        """Say what is going on now."""
        self.bar.update(self.task, description=description)

    def expect(self, total: int, guess_s: float) -> None:
        """Start to count `total` pieces of like size, of `guess_s` seconds each."""
        self.bar.reset(self.task, total=total, guess_s=guess_s)

    def advance(self, pieces: int = 1) -> None:
        """Count pieces as done, one unless told otherwise."""
        self.bar.advance(self.task, pieces)
        self.bar.update(self.task, last_s=self.bar.tasks[0].elapsed)

    def warn(self, line: str) -> None:
        """Print a warning above the line, terminal or not."""
        self.console.print(f"Warning: {line}", style="yellow", markup=False, soft_wrap=True)
