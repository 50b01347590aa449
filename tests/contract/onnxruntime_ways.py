"""The ways from a model to an engine of `onnxruntime`."""

from collections.abc import Callable

import numpy as np
import pytest

from backends import registry
from backends.contract import Artefact, Shapes, Target
from backends.onnxruntime.engine import OnnxEngine
from models.checkpoint import Weights
from tests.contract.conftest import build_once

SHAPES = Shapes(batch=2, prompts=(4, 8), capacity=24)
TOKENS = np.random.default_rng(5).integers(0, 160, (2, 24), dtype=np.int32)
OpenFamily = Callable[[str, str], Weights]
WAYS = ("onnxruntime", "onnxruntime[attention=standard]", "onnxruntime[import=torch]")


def build(weights: Weights, name: str = "onnxruntime") -> Artefact:
    backend, options = registry.parse(name)
    if options.get("import") == "torch":
        pytest.importorskip("torch")
        pytest.importorskip("onnxscript")
    target = Target("cpu", weights.dtype, "any")
    return build_once(registry.find(backend), weights.config, SHAPES, target, options)


def load(weights: Weights, name: str = "onnxruntime") -> OnnxEngine:
    return OnnxEngine(build(weights, name), weights)
