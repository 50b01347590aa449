"""Find a backend by name: the built-in ones below, or a distribution's entry point in `workbench.backends`.

Nothing of a backend is imported until it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from backends.contract import Backend

BUILTIN = {
    "null": "backends.null:Null",
    "eager": "backends.eager:Eager",
    "compile": "backends.compile:Compile",
    "xla": "backends.xla:Xla",
    "iree": "backends.iree:Iree",
    "onnxruntime": "backends.onnxruntime:OnnxRuntime",
    "flashinfer": "backends.flashinfer:FlashInfer",
    "handwritten": "backends.handwritten:Handwritten",
    "trtllm": "backends.trtllm:TensorRtLlm",
    "tvm": "backends.tvm:Tvm",
}

ENTRY_POINTS = "workbench.backends"
"""The entry-point group in which other distributions register theirs: `name = "module:Class"`."""

REQUIRED = ("name", "options", "probe", "build", "load")
"""What `contract.Backend` asks of a backend."""


def names() -> list[str]:
    """List every backend that can be asked for: the built-in ones, then third parties' by name."""
    return [*BUILTIN, *sorted(_third_parties().keys() - BUILTIN.keys())]


def find(name: str) -> Backend:
    """Import a backend and return it; raises UserError if it is unknown or its distribution is broken."""
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        backend: Backend = getattr(importlib.import_module(module), attribute)()
        return backend
    entry_point = _third_parties().get(name)
    if entry_point is None:
        raise UserError(f"unknown backend {name!r}: {nearest(name, names())}")
    return _load(entry_point)


def find_sources(name: str) -> dict[str, Path]:
    """Find the files of another distribution's backend by name; none of a built-in or an unknown one.

    Imports none of them.
    """
    entry_point = None if name in BUILTIN else _third_parties().get(name)
    if entry_point is None:
        return {}
    spec = importlib.import_module("importlib.util").find_spec(entry_point.module.partition(".")[0])
    if spec is None or spec.origin is None:
        return {}
    origin = Path(spec.origin)
    files = origin.parent.rglob("*.py") if spec.submodule_search_locations else [origin]
    return {str(path.relative_to(origin.parent)): path for path in files}


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Split `compile[mode=max-autotune,graph]` into name and options; a switch has the value ''."""
    name, bracket, inner = text.strip().partition("[")
    if bracket and not inner.endswith("]"):
        raise UserError(f"cannot read backend {text!r}: close the bracket, NAME[option=value,switch]")
    if not name or any(mark in name + inner[:-1] for mark in "[] "):
        raise UserError(f"cannot read backend {text!r}: write NAME or NAME[option=value,switch]")
    options: dict[str, str] = {}
    for item in inner[:-1].split(",") if bracket else ():
        key, equals, value = item.partition("=")
        if not key or (equals and not value):
            raise UserError(f"cannot read option {item!r} of {text!r}: write option=value, or a switch alone")
        if key in options:
            raise UserError(f"option {key!r} of {text!r} is given twice: keep one")
        options[key] = value
    return name, options


def parse_list(text: str) -> list[tuple[str, dict[str, str]]]:
    """Split `a,b[x=1,y]` at the commas outside brackets and parse each part."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [parse(part) for part in parts]


def check_options(backend: Backend, options: Mapping[str, str]) -> None:
    """Refuse options that the backend does not take; raises UserError with the nearest that it does."""
    from backends.contract import ANY_NUMBER  # with numpy, which names can be listed without

    for key, value in options.items():
        option = backend.options.get(key)
        if option is None:
            choices = nearest(key, backend.options) if backend.options else "it takes no options"
            raise UserError(f"{backend.name} has no option {key!r}: {choices}")
        given = f"{key}={value}" if value else f"{key} without a value"
        if option.values == ANY_NUMBER:
            if not value.isdecimal() or int(value) < 1:
                raise UserError(f"{backend.name} does not take {given}: write {key}=1, or a larger number")
        elif option.values and value not in option.values:
            raise UserError(f"{backend.name} does not take {given}: {nearest(value, option.values)}")
        elif value and not option.values:
            raise UserError(f"{backend.name} does not take {key}={value}: {key} is a switch, write it alone")


def _third_parties() -> dict[str, EntryPoint]:
    metadata = importlib.import_module("importlib.metadata")
    return {entry_point.name: entry_point for entry_point in metadata.entry_points(group=ENTRY_POINTS)}


def _load(entry_point: EntryPoint) -> Backend:
    owner = f"of {entry_point.dist.name}" if entry_point.dist else "of an unknown distribution"
    where = f"backend {entry_point.name!r} {owner} ({entry_point.value})"
    try:
        backend: Backend = entry_point.load()()
    except Exception as error:  # whatever a stranger's module raises while it is imported
        from backends.probe_failure import name_cause

        raise UserError(f"{where} cannot be loaded: {name_cause(error)}; upgrade or uninstall it") from error
    missing = [attribute for attribute in REQUIRED if not hasattr(backend, attribute)]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: it must implement backends.contract.Backend")
    return backend


def nearest(word: str, known: Iterable[str]) -> str:
    """Phrase what to try instead of `word`."""
    difflib = importlib.import_module("difflib")
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}"
