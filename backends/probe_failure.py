"""Why a framework cannot be used here, for every backend whose framework is imported to find out."""

import textwrap

from backends.contract import Probe

CAUSE_LENGTH = 300


def describe_failure(name: str, error: Exception, install: str) -> Probe:
    """Say what is not installed, or how a half-installed framework failed, which it does in many ways."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return Probe(reason=f"{error.name} is not installed", install=install)
    return Probe(reason=f"{name} cannot be used: {name_cause(error)}", install=install)


def name_cause(error: Exception) -> str:
    """Write an exception in one line, as long as a reason may be."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", CAUSE_LENGTH, placeholder=" ...")
