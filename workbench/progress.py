"""What the user sees while work goes on: one line on stderr with the time left, none off a terminal."""

from typing import Any

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


LEAST_S = 1.0
"""Seconds that are said to be left as long as a piece is."""


class TimeLeft(ProgressColumn):
    """The time left: what was guessed of the pieces that are left, at the pace of those that are done."""

    def render(self, task: Task) -> Text:
        """Write it, or nothing where no number of pieces is known or none is left."""
        if task.elapsed is None or not task.remaining:
            return Text("")
        done_s, last_s = task.fields["done_s"], task.fields["last_s"]
        pace = last_s / done_s if done_s else 1.0
        # What takes longer than it should takes no time from the pieces behind it.
        spent = min(task.elapsed - last_s, pace * task.fields["next_s"])
        left = pace * (task.fields["total_s"] - done_s) - spent
        return Text(f"about {units.duration(max(left, LEAST_S))} left")


def weights(total_s: float, next_s: float) -> dict[str, Any]:
    """Return what a count begins with: the guessed seconds of all pieces, and of the next ones."""
    return {"total_s": total_s, "next_s": next_s, "done_s": 0.0, "last_s": 0.0}


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
        self.task = self.bar.add_task("starting", total=None, **weights(0.0, 0.0))

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
        """Start to count `total` pieces, of `guess_s` seconds each on average."""
        self.bar.reset(self.task, total=total, **weights(total * guess_s, guess_s))

    def begin(self, guess_s: float) -> None:
        """Say what those of the next pieces are guessed to take that come to an end together."""
        self.bar.update(self.task, next_s=guess_s)

    def advance(self, guess_s: float | None = None) -> None:
        """Count a piece as done, one of the average size unless told what it was guessed to take."""
        task = self.bar.tasks[0]
        if guess_s is None:
            guess_s = task.fields["next_s"]
        self.bar.update(
            self.task, advance=1, done_s=task.fields["done_s"] + guess_s, last_s=task.elapsed or 0.0
        )

    def forgo(self, pieces: int, guess_s: float) -> None:
        """Count no longer on pieces of `guess_s` seconds each."""
        task = self.bar.tasks[0]
        total_s = task.fields["total_s"] - pieces * guess_s
        self.bar.update(self.task, total=(task.total or 0) - pieces, total_s=total_s)

    def warn(self, line: str) -> None:
        """Print a warning above the line, terminal or not."""
        self.console.print(f"Warning: {line}", style="yellow", markup=False, soft_wrap=True)
