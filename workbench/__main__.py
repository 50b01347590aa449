"""Run the command line: `python -m workbench`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# `python -m` puts the working folder first on the path, and a `models/` or `backends/` of the user's own
# would then be taken for ours.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != ROOT:
    del sys.path[0]

from workbench.cli import main  # noqa: E402 (the path is only right now)

main()
