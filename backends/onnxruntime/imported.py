"""The definition by way of torch.export and torch.onnx: what ONNX Runtime gives a PyTorch user for free."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from onnx import GraphProto, TensorProto, helper

from backends.contract import Shapes, Unsupported
from backends.onnxruntime.engine import Programs
from backends.onnxruntime.graph import OPSET
from models.config import DecoderConfig
from models.layout import fused_layout
from models.rope import whole_head_tables

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NARROW = "narrow_logits"
"""The logits as the program computes them."""


def import_programs(config: DecoderConfig, shapes: Shapes, dtype: str) -> Programs:
    """Turn a program for each prompt length and one for decode into ONNX models; raises Unsupported."""
    try:
        import onnxscript  # noqa: F401 (torch.onnx writes with it)
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise Unsupported(f"import=torch needs {error.name}: pip install torch onnxscript") from error
    from backends.torch_program import export_decode, export_prefill

    prefills = {
        length: to_onnx(config, export_prefill(config, shapes, dtype, length), "tokens")
        for length in shapes.prompts
    }
    decode = to_onnx(config, export_decode(config, shapes, dtype), "tokens", "positions")
    return Programs(decode, prefills, tabulate(config, shapes.capacity))


def to_onnx(config: DecoderConfig, program: "ExportedProgram", *arguments: str) -> bytes:
    """Translate one program and call its inputs and outputs as the engine does."""
    import torch

    cache = [f"{part}.{layer}" for part in ("keys", "values") for layer in range(config.layers)]
    weights = [each.name for each in fused_layout(config)]
    state = ("tokens", "positions", *cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
        translated = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,  # the first with an operator for attention is not torch's default
            input_names=[*weights, "cos", "sin", *arguments, *cache],
            output_names=["logits", *(f"next.{name}" for name in state)],
        )
    assert translated is not None  # with dynamo it is not written to a file
    model = translated.model_proto
    widen_logits(model.graph)
    serialised: bytes = model.SerializeToString()
    return serialised


def widen_logits(graph: GraphProto) -> None:
    """Return logits in float32, as the engine reads them, whatever type the program computes them in."""
    (logits,) = (output for output in graph.output if output.name == "logits")
    if logits.type.tensor_type.elem_type == TensorProto.FLOAT:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [NARROW if name == "logits" else name for name in names]
    graph.node.append(helper.make_node("Cast", [NARROW], ["logits"], to=TensorProto.FLOAT))
    logits.type.tensor_type.elem_type = TensorProto.FLOAT


def tabulate(config: DecoderConfig, capacity: int) -> dict[str, npt.NDArray[Any]]:
    """Return the tables of angles as the programs take them."""
    return dict(zip(("cos", "sin"), whole_head_tables(config, capacity), strict=True))
