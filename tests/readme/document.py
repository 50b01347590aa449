"""Read README.md, that of the backends and that of the results: the commands, and what is written as code."""

import re
import shlex

from tests.cli.conftest import ROOT

FILES = ("README.md", "backends/README.md", "results/README.md")
TEXT = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in FILES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return every line of the bash blocks as it would run, without comments."""
    blocks = [body for language, body in FENCE.findall(TEXT) if language == "bash"]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(words) for words in split if words]


def code() -> list[str]:
    """Return what stands in backticks in the running text."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXT))


def values_of(option: str) -> list[str]:
    """Return the values that an option has in any command, placeholders in capitals left out."""
    values = re.findall(rf"(?<![\w-]){option}[ =]([^\s`]+)", TEXT)
    return [value for value in values if not value.isupper()]
