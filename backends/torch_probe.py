"""What PyTorch can do here; kept apart from the engine so that it can say that PyTorch is missing."""

from importlib.metadata import PackageNotFoundError, version

from backends.contract import Probe
from backends.probe_failure import name_cause

INSTALL = "pip install 'torch>=2.11,<2.14'"
"""What the extras ask for, not `workbench[eager]`: another Python may not have this project."""


def probe_torch() -> Probe:
    """Import torch and describe it."""
    try:
        import torch
    except ModuleNotFoundError:
        return Probe(reason="torch is not installed", install=INSTALL)
    except Exception as error:  # a half-installed torch fails in many ways
        return Probe(reason=f"torch cannot be imported: {name_cause(error)}", install=INSTALL)
    versions = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    try:
        versions["triton"] = version("triton")
    except PackageNotFoundError:
        pass  # a CPU build has none and needs none
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))
