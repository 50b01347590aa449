"""What the command `build` is asked for, parsed; defaults are those that `compare` has on such a device."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import UserError
from workbench.comparing.request import Named, Request, Settings, settle


@dataclass(frozen=True)
class BuildRequest:
    """Which engines to build."""

    backends: tuple[Named, ...] | None
    """None for every one that can be built ahead and is installed."""
    targets: tuple[str, ...]
    model: str | None = None
    dtype: str | None = None
    batches: tuple[int, ...] | None = None
    prompts: tuple[int, ...] | None = None
    contexts: tuple[int, ...] | None = None
    steps: int | None = None
    jobs: int | None = None
    engines: Path | None = None
    pythons: dict[str, str] = field(default_factory=dict)
    tune: bool = False

    def settle(self, target: str) -> Settings:
        """Fill in what is left to the target as `compare` does on that device; raises UserError."""
        request = Request(
            model=self.model,
            dtype=self.dtype,
            batches=self.batches,
            prompts=self.prompts,
            contexts=self.contexts,
            steps=self.steps,
        )
        return settle(request, "cpu" if target == "cpu" else "cuda:0")

    def python(self, backend: str) -> str:
        """Return the interpreter that a backend is run with."""
        return self.pythons.get(backend, sys.executable)

    def workers(self) -> int:
        """Return how many engines to build at a time; raises UserError."""
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: at least one engine is built at a time")
        return self.jobs or max((os.cpu_count() or 1) // 2, 1)  # compilers have threads of their own
