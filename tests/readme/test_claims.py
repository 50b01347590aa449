"""What the README names exists: files, options, statuses, backends, presets, fields, variables."""

import dataclasses
import re
import subprocess
import sys

import pytest
from typer.main import get_command

from backends.contract import Engine
from backends.registry import ENTRY_POINTS, REQUIRED, check_options, find, names, parse_list
from models.config import PRESETS
from models.decoder import Ops
from tests.cli.conftest import ROOT
from tests.readme.document import TEXT, code, values_of
from workbench import pythons
from workbench.cli import app
from workbench.record import STATUSES, Record

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
WORD = re.compile(r"[a-z_]+")
FOLDERS = r"(?:models|backends|workbench|scripts|tests|\.ci)/"


def named_files() -> list[str]:
    """Return each path of this repository in the whole text, and each bare file name in backticks."""
    paths = re.findall(rf"(?<![\w./-]){FOLDERS}[\w./-]*", TEXT)
    paths += [word for word in code() if re.fullmatch(r"[\w-]+\.(?:py|sh|toml)", word)]
    of_the_user = {str(pythons.FILE)}
    return sorted({path.rstrip(".") for path in paths if "NAME" not in path} - of_the_user)


@pytest.mark.parametrize("path", named_files())
def test_file_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_named_results_exist() -> None:
    named = set(re.findall(r"`(?:results/)?((?:amd|intel|nvidia)-[\w-]+/[\w.-]+)`", TEXT))
    assert len(named) > 5
    assert not [path for path in named if not (ROOT / "results" / path).exists()]


def test_options_are_those_of_our_commands_and_of_pytest(environment: dict[str, str]) -> None:
    named = set(OPTION.findall(TEXT))
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    ours = {option for command in commands for each in command.params for option in each.opts}
    command = [sys.executable, "-m", "pytest", "-p", "workbench.tracking.pytest_plugin", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert {"--backends", "--model", "--dry-run", "--out", "--against"} <= named
    assert named <= ours | set(OPTION.findall(done.stdout))


def test_statuses_are_those_of_the_record() -> None:
    (item,) = re.findall(r"^- \*\*status\*\*.*?(?=^- |^$)", TEXT, re.DOTALL | re.MULTILINE)
    named = {word for word in re.findall(r"`([^`\n]+)`", item) if WORD.fullmatch(word)}
    assert named == set(STATUSES)


def test_backends_and_their_options_are_registered() -> None:
    written = values_of("--backends") + values_of("--baseline")
    written += [word for word in code() if re.fullmatch(r"[a-z-]+\[[a-z0-9=,-]+\]", word)]
    asked = [parsed for text in written for parsed in parse_list(text) if not parsed[0].isupper()]
    assert {"eager", "compile"} <= {name for name, _ in asked} <= set(names())
    for name, options in asked:
        check_options(find(name), options)


def test_models_in_commands_are_presets_or_folders() -> None:
    presets = {model for model in values_of("--model") if model[0] not in "./~"}
    assert presets
    assert presets <= set(PRESETS)


def test_fields_of_the_record_are_named_as_they_are() -> None:
    fields = {field.name for field in dataclasses.fields(Record)}
    named = {word for word in code() if re.fullmatch(r"[a-z_]+_(?:s|bytes|share|ratio)", word)}
    assert "load_s" in named
    assert named <= fields


def test_variables_are_read_somewhere() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "workbench").rglob("*.py"))
    variables = set(re.findall(r"WORKBENCH_[A-Z]+", TEXT))
    assert variables
    assert not [variable for variable in variables if variable not in sources]


def test_five_steps_name_the_whole_contract() -> None:
    steps = TEXT.partition("## Add a backend in five steps")[2].partition("\n## ")[0]
    engine = {name for name in vars(Engine) if not name.startswith("_")}
    assert {"stage", "prefill", "decode", "rewind"} <= engine
    missing = [word for word in (*REQUIRED, *engine, ENTRY_POINTS) if f"`{word}`" not in steps]
    assert not missing
    assert len(re.findall(r"^\d\. ", steps, re.MULTILINE)) == 5


def test_operations_are_counted_right() -> None:
    counts = ("five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    operations = [name for name in vars(Ops) if not name.startswith("_")]
    said = set(re.findall(r"(\w+)\s+operations\s+of\s+`Ops`", TEXT)) & set(counts)
    assert said == {counts[len(operations) - 5]}
