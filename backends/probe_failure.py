"""Why a framework cannot be used here, for every backend whose framework is imported to find out."""

from backends.contract import Probe


def describe_failure(name: str, error: Exception, install: str) -> Probe:
    """Say what is not installed, or how a half-installed framework failed, which it does in many ways."""
    if isinstance(error, ModuleNotFoundError):
        return Probe(reason=f"{error.name} is not installed", install=install)
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    return Probe(reason=f"{name} cannot be used: {cause}", install=install)
