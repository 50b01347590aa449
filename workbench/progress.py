"""What the user sees while work goes on: one line on stderr with the time left, none off a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from workbench import units


class Progress:
    """Progress of one command."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.current = self.bar.add_task("starting", total=None, left="")
        self.started = time.monotonic()
        self.done = 0
        self.total = 0

    def __enter__(self) -> "Progress":
        """Show the line."""
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self.bar.stop()

    def say(self, description: str) -> None:
        """Say what is going on now."""
        self.bar.update(self.current, description=description)

    def expect(self, total: int) -> None:
        """Start to count `total` pieces of like size: a row in one process each."""
        self.total, self.done, self.started = total, 0, time.monotonic()
        self.bar.update(self.current, total=total, completed=0)

    def advance(self, count: int = 1) -> None:
        """Count pieces as done and estimate the time left from those so far."""
        self.done += count
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        text = f"about {units.duration(left)} left" if self.done < self.total else ""
        self.bar.update(self.current, completed=self.done, left=text)

    def warn(self, line: str) -> None:
        """Print a warning above the line, terminal or not."""
        self.console.print(f"Warning: {line}", style="yellow", markup=False, soft_wrap=True)
