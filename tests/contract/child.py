"""An engine in a process of its own, where threads can be counted and compilers keep what they make."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, os, sys, time
from pathlib import Path
from backends import registry
from backends.contract import Shapes, Target
from models.checkpoint import open_checkpoint
weights = open_checkpoint(Path(sys.argv[2]), "float32")
backend, shapes = registry.find(sys.argv[1]), Shapes(2, (4,), 23)
engine = backend.load(backend.build(weights.config, shapes, Target("cpu", "float32", "any"), {}), weights)
engine.prefill()
engine.sync()
time.sleep(0.5)  # one that has read the weights and ended is listed until the kernel has run it once more
names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
print(json.dumps(names))
"""


def threads_of(backend: str, folder: Path, threads: int, cache: dict[str, str]) -> list[str]:
    """Load an engine given so many threads and run a prefill; returns the names of the process's threads.

    `cache` is the variable that tells the compiler where to keep things.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **cache}
    variables.pop("NPROC", None)  # XLA's own, which an engine loaded in this process has set
    done = subprocess.run(
        [sys.executable, "-c", CODE, backend, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables,
        check=True,
    )
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names
