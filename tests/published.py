"""tensorrt_llm as it is documented: calls are bound to the published signatures, and nothing computes."""

import json
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Json = dict[str, Any]
Key = tuple[str, str]

LISTED: list[Json] = json.loads((Path(__file__).parent / "data" / "tensorrt_llm.json").read_text())


def entry(module: str, name: str) -> Json:
    """Return what is published of a name; raises LookupError if nothing is."""
    found = [each for each in LISTED if (each["module"], each["name"]) == (module, name)]
    if not found:
        raise LookupError(f"tensorrt_llm 1.2 publishes no {module}.{name}")
    return found[0]


def signature(published: Json) -> Signature:
    """Return the signature of a callable; further keywords are those it hands on."""
    usual = Parameter.KEYWORD_ONLY if published.get("keyword_only") else Parameter.POSITIONAL_OR_KEYWORD
    own = [parameter(name, usual) for name in published["parameters"]]
    more = [parameter(name, Parameter.KEYWORD_ONLY) for name in published.get("keywords", ())]
    return Signature([*own, *more])


def parameter(name: str, kind: Any) -> Parameter:
    """Read `name`, or `name*` for one without a default."""
    return Parameter(name.rstrip("*"), kind, default=Parameter.empty if name.endswith("*") else None)


class Published:
    """Stands for the modules of tensorrt_llm; keeps each call's arguments by the names they bind to."""

    def __init__(self, behaviour: dict[str, Callable[[Json], Any]] | None = None) -> None:
        self.behaviour = behaviour or {}
        """What a call returns, by the name called; anything else returns its arguments."""
        self.calls: list[tuple[str, Json]] = []

    def find(self, module: str, name: str) -> Callable[..., Any]:
        """Return a published callable; raises LookupError for any other."""
        published = entry(module, name)
        bind = signature(published).bind

        def call(*arguments: Any, **keywords: Any) -> Any:
            bound = dict(bind(*arguments, **keywords).arguments)
            self.calls.append((f"{module}.{name}", bound))
            result = self.behaviour.get(name, lambda values: SimpleNamespace(**values))(bound)
            for attribute, inner in published.get("attributes", {}).items():
                setattr(result, attribute, SimpleNamespace(**dict.fromkeys(inner)))
            for method in published.get("methods", ()):
                setattr(result, method, self.method(method, getattr(result, method, None)))
            return result

        return call

    def method(self, name: str, does: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return a method of LLM, bound to what is published of it."""
        bind = signature(entry("tensorrt_llm", f"LLM.{name}")).bind

        def call(*arguments: Any, **keywords: Any) -> Any:
            bound = dict(bind(*arguments, **keywords).arguments)
            self.calls.append((f"LLM.{name}", bound))
            return does(**bound) if does else None

        return call
