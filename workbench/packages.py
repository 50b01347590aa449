"""What a worker's interpreter is given to import: this project's packages, and nothing else of ours."""

import os
import sys
import threading
from pathlib import Path

from models.errors import UserError
from workbench.caches import cache_root, digest

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages: a source tree, or the site-packages they are installed in."""
PACKAGES = ("backends", "models", "workbench")


def import_folder(python: str) -> Path:
    """Return the folder to put first on the path of `python`; raises UserError if it cannot be made.

    Another interpreter than ours must not find what else lies in our site-packages, built for our version
    of Python and put before its own packages. It gets a folder of links to our packages alone.
    """
    return ROOT if python == sys.executable else link_packages()


def link_packages() -> Path:
    """Make a folder that holds links to our packages, or find the one made before."""
    folder = cache_root() / "packages" / digest({"root": ROOT})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PACKAGES:
            _link(folder / name, ROOT / name)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}; free space or set WORKBENCH_CACHE"
        ) from error
    return folder


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target, target_is_directory=True)
    unfinished.replace(path)  # at once, whoever else makes the same link
