"""What is shipped: wheel and sdist, their contents, and a fresh environment with the wheel alone."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import workbench
from tests.cli.conftest import ROOT

PACKAGES = ("workbench", "backends", "models")
SHIPPED = (*PACKAGES, "tests", "scripts", ".ci", "README.md", "pyproject.toml", ".gitignore")
JUNK = (
    ".venv/lib/python3.11/site-packages/torch.py",
    ".pytest_cache/README.md",
    "dist/workbench-0.0.1.tar.gz",
    "results/cpu/tiny.jsonl",
    "tests/__pycache__/left.cpython-311.pyc",
    "workbench/__pycache__/left.cpython-311.pyc",
)
EXTRAS = {"eager", "compile", "xla", "xla-cuda", "tvm", "iree", "onnxruntime", "onnxruntime-cuda"}
EXTRAS |= {"flashinfer", "handwritten", "trtllm", "kernels", "import", "report", "parquet", "track", "build"}
EXTRAS |= {"cpu", "dev", "tvm-cuda", "iree-cuda"}
COMMANDS = (("backends",), ("compare", "--dry-run", "--backends", "null"), ("--help",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of this project as it is after work: with results, caches and an environment in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    for name in JUNK:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("left over")
    return copy


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """Return a folder with an sdist and the wheel made from that sdist."""
    folder = source / "built"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def environment(cache: Path) -> dict[str, str]:
    """Return the variables commands run with: nothing points at this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"WORKBENCH_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def programs(wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs' folder of a fresh environment into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=environment)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder of a user's with packages of the same names, which must not be imported."""
    for name in ("models", "backends"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package was imported')")
    return tmp_path


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def of_extra(metadata: Message, extra: str) -> list[Requirement]:
    return [
        requirement
        for requirement in requirements(metadata)
        if requirement.marker
        and requirement.marker.evaluate({"extra": extra})
        and not requirement.marker.evaluate({"extra": ""})
    ]


def test_wheel_holds_every_module_with_its_assets_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        "workbench/__main__.py",
        "workbench/worker.py",
        "workbench/page/assets/page.html",
        "backends/eager.py",
        "models/decoder.py",
    } <= modules
    assert held == modules


def test_sdist_holds_all_that_is_kept_and_nothing_that_was_made(source: Path, built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    shipped = {
        file.relative_to(source).as_posix()
        for name in SHIPPED
        for file in ([source / name] if (source / name).is_file() else (source / name).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"README.md", "scripts/compare.sh", "tests/cli/test_package.py", ".ci/run"} <= shipped
    assert held == shipped | {"PKG-INFO"}


def test_version_is_written_once(metadata: Message, wheel: Path, built: Path) -> None:
    assert metadata["Version"] == workbench.__version__
    assert wheel.name.startswith(f"workbench-{workbench.__version__}-py3-")
    assert (built / f"workbench-{workbench.__version__}.tar.gz").is_file()


def test_extras_are_named_by_backend(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


def test_pytest_finds_the_plugin_under_the_name_of_its_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(name).decode()
    assert "[pytest11]\nworkbench.tracking.pytest_plugin = workbench.tracking.pytest_plugin" in text


@pytest.mark.parametrize("extra", ["eager", "compile"])
def test_torch_is_held_to_the_releases_that_were_tried(metadata: Message, extra: str) -> None:
    (torch,) = of_extra(metadata, extra)
    assert torch.name == "torch"
    assert {str(part) for part in torch.specifier} == {">=2.11", "<2.14"}
    assert {"2.11.0", "2.13.0+cpu"} == set(
        torch.specifier.filter(["2.10.0", "2.11.0", "2.13.0+cpu", "2.14.0"])
    )


def test_cpu_extra_brings_every_backend_that_runs_there(metadata: Message) -> None:
    brought = {(each.name, each.specifier) for each in of_extra(metadata, "cpu")}
    names = ("eager", "compile", "xla", "iree", "onnxruntime", "tvm")
    parts = [each for name in names for each in of_extra(metadata, name)]
    assert brought == {(each.name, each.specifier) for each in parts}


def test_wheel_installs_without_any_framework(
    programs: Path, metadata: Message, environment: dict[str, str]
) -> None:
    listing = [str(programs / "python"), "-m", "pip", "list", "--format", "json"]
    done = subprocess.run(listing, capture_output=True, text=True, env=environment, check=True)
    installed = {canonicalize_name(row["name"]) for row in json.loads(done.stdout)}
    base = {requirement.name for requirement in requirements(metadata) if not requirement.marker}
    optional = {each.name for extra in EXTRAS - {"dev"} for each in of_extra(metadata, extra)}
    assert base <= installed
    assert {"torch", "jax", "apache-tvm", "onnxruntime", "tensorrt-llm"} <= optional
    assert not installed & (optional | {"transformers", "triton"})
    check = subprocess.run([str(programs / "python"), "-m", "pip", "check"], env=environment)
    assert check.returncode == 0


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("program", [("python", "-m", "workbench"), ("workbench",)], ids=" ".join)
def test_commands_run_beside_packages_of_the_same_names(
    programs: Path,
    hostile: Path,
    environment: dict[str, str],
    program: tuple[str, ...],
    arguments: tuple[str, ...],
) -> None:
    command = [str(programs / program[0]), *program[1:], *arguments]
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("Usage" if arguments == ("--help",) else "null") in done.stdout
    assert done.stderr == ""


def test_installed_version_is_that_of_the_package(
    programs: Path, hostile: Path, environment: dict[str, str]
) -> None:
    code = (
        "from importlib.metadata import version\n"
        "import workbench\n"
        "print(version('workbench'), workbench.__version__, workbench.__file__)"
    )
    command = [str(programs / "python"), "-P", "-c", code]
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, env=environment, check=True)
    distribution, package, file = done.stdout.split(maxsplit=2)
    assert distribution == package == workbench.__version__
    assert Path(file.strip()).is_relative_to(programs.parent)


def test_backend_without_its_framework_names_what_its_extra_asks_for(
    programs: Path, hostile: Path, environment: dict[str, str]
) -> None:
    command = [str(programs / "workbench"), "backends", "--format", "json"]
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, env=environment, check=True)
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert rows["null"]["usable"]
    for name in ("eager", "compile"):
        assert not rows[name]["usable"]
        assert rows[name]["install"] == "pip install 'torch>=2.11,<2.14'"
