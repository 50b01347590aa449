"""What PyTorch can do here; kept apart from the engine so that it can say that PyTorch is missing."""

from importlib.metadata import PackageNotFoundError, version

from backends.contract import Probe


def probe_torch(extra: str) -> Probe:
    """Import torch and describe it; `extra` is the extra of this distribution that installs it."""
    install = f"pip install 'workbench[{extra}]'"
    try:
        import torch
    except ModuleNotFoundError:
        return Probe(reason="torch is not installed", install=install)
    except Exception as error:  # a half-installed torch fails in many ways
        return Probe(reason=f"torch cannot be imported: {type(error).__name__}: {error}", install=install)
    versions = {"torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    try:
        versions["triton"] = version("triton")
    except PackageNotFoundError:
        pass  # a CPU build has none and needs none
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))
