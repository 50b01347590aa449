"""Write an ONNX graph node by node; tensors go by their names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 24
"""Of the standard operators: the first with TensorScatter, and with attention to a cache that it fills."""
IR_VERSION = 11
CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


class Graph:
    """A graph under construction."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}

    def input(self, name: str, element_type: int, shape: Sequence[int | str]) -> str:
        """Declare an input; a dimension that is a word is settled by each call."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, name: str, element_type: int, shape: Sequence[int | str]) -> str:
        """Declare an output; some node has to be given the name for its own."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def constant(self, value: int | Sequence[int], dtype: npt.DTypeLike = np.int64) -> str:
        """Return a small constant of the computation, a shape for example; equal ones are stored once."""
        array = np.asarray(value, dtype)
        name = f"constant.{array.dtype}.{array.tolist()}"
        self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(
        self, operator: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output, named here unless `outputs` says how; '' is left out."""
        name = f"{operator}.{len(self._nodes)}"
        named = outputs or [name]
        self._nodes.append(helper.make_node(operator, inputs, named, name, domain=domain, **attributes))
        return named[0]

    def model(self, name: str) -> ModelProto:
        """Return the finished model."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
