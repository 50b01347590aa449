"""What `python -m workbench backends` prints."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from backends import registry
from models.errors import UserError
from workbench.comparing.contestants import probe_backends
from workbench.report import foldable, stdout


def print_backends(pythons: Mapping[str, str], as_json: bool) -> None:
    """Probe every backend in its own Python and print what it said."""
    probes = probe_backends(registry.names(), pythons)
    if as_json:
        rows = [{"backend": name, "usable": probe.usable, **asdict(probe)} for name, probe in probes.items()]
        print(json.dumps(rows, indent=1))
        return
    console = stdout()
    names = ("backend", "usable")
    table = foldable((*names, "devices", "dtypes", "versions"), whole=names)
    for name, probe in probes.items():
        table.add_row(
            name,
            "yes" if probe.usable else "no",
            ", ".join(probe.devices),
            ", ".join(probe.dtypes),
            ", ".join(f"{package} {version}" for package, version in probe.versions.items()),
            style="" if probe.usable else "dim",
        )
    console.print(table)
    lines = [f"options of {name}: {options}" for name in probes if (options := options_of(name))]
    for name, probe in probes.items():
        if not probe.usable:
            lines.append(f"{name}: {'; '.join(filter(None, (probe.reason, probe.install)))}")
    console.print(*lines, sep="\n", soft_wrap=True)  # each in one piece, to be copied


def options_of(name: str) -> str:
    """Write a backend's options as they are typed; a broken one has none, and its probe says why."""
    try:
        options = registry.find(name).options
    except UserError:
        return ""
    return ", ".join(
        f"{key}={'|'.join(option.values)}" if option.values else key for key, option in options.items()
    )
