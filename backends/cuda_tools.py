"""The tools of CUDA's toolkit that compilers call; several backends ask for their release."""

import shutil
import subprocess


def tool_release(name: str) -> str | None:
    """Tell the release of a tool, given by path or by name, `13.0, V13.0.88`; None where there is none."""
    path = shutil.which(name)
    if path is None:
        return None
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return told.strip().rpartition("release ")[2].partition("\n")[0]
