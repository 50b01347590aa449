"""Weights that are placed while what compiles is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from models.checkpoint import Weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from backends.compile.lower import place_ahead
from models.checkpoint import open_checkpoint
weights = open_checkpoint(Path(sys.argv[1]), "bfloat16")
needed = ("torch._dynamo", "torch._inductor.compile_fx")
assert not [name for name in needed if name in sys.modules], "they were imported before"
place_ahead(weights, "cpu")
assert all(name in sys.modules for name in needed), "they have other names now"
again = weights.once("torch:cpu", lambda: None)
assert again and set(again) == {name for name, _ in weights.arrays()}
"""


def test_what_compiles_is_there_when_the_weights_are(open_family: Callable[[str, str], Weights]) -> None:
    folder = open_family("llama", "bfloat16").folder
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
