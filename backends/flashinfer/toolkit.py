"""What FlashInfer asks of a CUDA toolkit, where one has come without it: headers and two libraries."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from backends.contract import Unsupported
from backends.flashinfer import nvcc_release


@contextmanager
def completed_toolkit() -> Iterator[None]:
    """Complete the toolkit for as long as this is entered; raises Unsupported.

    What is added is searched after all that a command line names, so whatever the toolkit has is taken.
    """
    with TemporaryDirectory(prefix="flashinfer-") as folder:
        make_stand_ins(Path(folder))
        headers = {"CPLUS_INCLUDE_PATH": os.pathsep.join([*variable("CPLUS_INCLUDE_PATH"), *find_headers()])}
        linked = {
            "FLASHINFER_EXTRA_LDFLAGS": " ".join([*variable("FLASHINFER_EXTRA_LDFLAGS", " "), f"-L{folder}"])
        }
        with changed_environment(headers | linked):
            yield


def find_headers() -> list[str]:
    """Find the headers of CUDA's libraries that torch's wheels bring: FlashInfer includes cuBLAS's."""
    nvidia = find_spec("nvidia")
    places = nvidia.submodule_search_locations if nvidia else None
    return sorted(str(path) for place in places or () for path in Path(place).glob("cu*/include"))


def make_stand_ins(folder: Path) -> None:
    """Make empty libraries to link against by the names of CUDA's driver and runtime; raises Unsupported.

    A machine without a GPU has no driver, and what is linked finds both by their names when it is loaded.
    """
    major = nvcc_release().partition(".")[0]
    for library, name in (("cuda", "libcuda.so.1"), ("cudart", f"libcudart.so.{major}")):
        command = [os.environ.get("CXX", "c++"), "-shared", "-nostdlib", f"-Wl,-soname,{name}"]
        try:
            subprocess.run(
                [*command, "-x", "c++", os.devnull, "-o", folder / f"lib{library}.so"],
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unsupported(f"FlashInfer's kernels cannot be linked by {command[0]}: {error}") from error


def variable(name: str, separator: str = os.pathsep) -> list[str]:
    """Split a variable of the environment; empty parts are left out."""
    return list(filter(None, os.environ.get(name, "").split(separator)))


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, and put them back."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
