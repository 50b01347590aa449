"""What several backends need of CUDA: the release of its tools, the status of its runtime's calls."""

import shutil
import subprocess
from typing import Any


def tool_release(name: str) -> str | None:
    """Tell the release of a tool, given by path or by name, `13.0, V13.0.88`; None where there is none."""
    path = shutil.which(name)
    if path is None:
        return None
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return told.strip().rpartition("release ")[2].partition("\n")[0]


def succeed(runtime: Any, answer: tuple[Any, ...]) -> Any:
    """Return what a call of the CUDA runtime gave besides its status; raises RuntimeError if it failed."""
    if answer[0] != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"the GPU failed: {answer[0].name}")
    return answer[1] if len(answer) > 1 else None
