"""What several backends need of CUDA: the release of its tools, the status of its runtime's calls."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any


def offer_wheel() -> None:
    """Put the tools of NVIDIA's wheel on this process's path, behind what is there; nothing without it."""
    try:
        tools = Path(str(distribution("nvidia-cuda-nvcc").locate_file("nvidia/cu13/bin")))
    except PackageNotFoundError:
        return
    path = os.environ.get("PATH", os.defpath)
    if tools.is_dir() and str(tools) not in path.split(os.pathsep):
        os.environ["PATH"] = f"{path}{os.pathsep}{tools}"


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
