"""A user's mistake is one line on stderr and exit code 2; nothing is printed to stdout, nothing is run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from models.weights import write_preset
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backends", "egaer"], ["unknown backend 'egaer'", "did you mean 'eager'"]),
        (["--backends", "compile[mood=default]"], ["no option 'mood'", "did you mean 'mode'"]),
        (["--backends", "compile[mode=defualt]"], ["mode=defualt", "did you mean 'default'"]),
        (["--backends", "compile[mode=default"], ["close the bracket"]),
        (["--model", "tinny"], ["tinny", "'tiny'"]),
        (["--batch", "0"], ["--batch 0", "at least 1"]),
        (["--batch", "one"], ["--batch", "whole numbers"]),
        (["--context", "100000"], ["--context 100000", "2048", "at most"]),
        (["--steps", "8"], ["--steps 8", "at least 32"]),
        (["--phases", "decoding"], ["--phases", "prefill, decode"]),
        (["--dtype", "int4"], ["--dtype int4", "float32"]),
        (["--device", "cuda:0"], ["cuda:0", "cpu"]),
        (["--device", "tpu"], ["tpu"]),
        (["--repeats", "0"], ["--repeats 0"]),
        (["--budget", "0"], ["--budget 0", "seconds"]),
        (["--batch", "1000000000"], ["--batch 1000000000", "at most 65536"]),
        (["--steps", "100000"], ["100128 positions", "take fewer --steps"]),
        (["--model", ""], ["config.json"]),
        (["--backends", "eager", "--baseline", "compile"], ["--baseline 'compile'", "eager"]),
        (["--modle", "tiny"], ["--modle", "--model"]),
        (["--format", "yaml"], ["'--format': 'yaml' is not one of 'table'"]),
    ],
)
def test_mistake_is_one_line(workbench: Run, arguments: list[str], words: list[str]) -> None:
    expect_refusal(workbench, arguments, words)


def expect_refusal(workbench: Run, arguments: list[str], words: list[str]) -> None:
    done = workbench("compare", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_debug_variable_shows_the_traceback(workbench: Run) -> None:
    done = workbench("compare", "--model", "tinny", WORKBENCH_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "good"
    write_preset("tiny", "float32", folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unsupported(folder: Path) -> None:
    edit_config(folder, architectures=["MambaForCausalLM"], model_type="mamba")


def unreadable(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def truncated(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").touch()


def change_tensors(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def lacking(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def surplus(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update(surprise=tensors["model.norm.weight"]))


def misshapen(folder: Path) -> None:
    change_tensors(
        folder,
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:-1].copy()}),
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unsupported, ["MambaForCausalLM"]),
        (unreadable, ["config.json"]),
        (truncated, [".safetensors"]),
        (pickled, ["pytorch_model.bin", "pickle", "save_pretrained"]),
        (lacking, ["model.layers.1.mlp.up_proj.weight"]),
        (surplus, ["surprise"]),
        (misshapen, ["model.norm.weight", "255", "256"]),
    ],
)
def test_damaged_checkpoint_is_named(
    workbench: Run, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    expect_refusal(workbench, ["--model", str(folder), "--backends", "eager"], words)


def test_folder_that_holds_no_model_is_refused(workbench: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    expect_refusal(workbench, ["--model", str(tmp_path / "empty")], ["config.json"])


@pytest.mark.parametrize("command", ["backends", "compare"])
def test_cache_that_cannot_be_written_is_one_line(workbench: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    done = workbench(command, WORKBENCH_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "cache" in done.stderr
