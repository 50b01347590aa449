"""The command `build`, as the tests of the engine store call it."""

import json
import subprocess
from typing import Any

from tests.cli.conftest import Run

SMALL = ("--model", "tiny", "--prompt", "16", "--max-context", "16")


def rows_of(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def build(run: Run, backends: str, target: str, *arguments: str, **more: str) -> Any:
    return run("build", "--backends", backends, "--target", target, *SMALL, *arguments, **more)
