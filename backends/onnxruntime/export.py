"""The definition as an ONNX model: what any runtime of ONNX, or `[attention=group-query]` of one, can load.

One model serves prefill and decode. Its inputs are `tokens` and `positions`, int32 [B, T], the tables of
angles, the cache of each layer and every weight under its name in `models.layout`; what a step leaves for
the next is an output called `next.` and the input's name. It holds no weight, and needs no runtime to write.
"""

from onnx import ModelProto, TensorProto

from backends.contract import Shapes
from backends.onnxruntime.graph import Graph
from backends.onnxruntime.ops import GroupQueryOps, OnnxOps, StandardOps
from models.config import DecoderConfig
from models.decoder import forward
from models.layout import fused_layout

ATTENTIONS: dict[str, type[OnnxOps]] = {"group-query": GroupQueryOps, "standard": StandardOps}


def export(config: DecoderConfig, shapes: Shapes, dtype: str, attention: str) -> ModelProto:
    """Write the definition with one of `ATTENTIONS`; group-query takes one more input, `total`, int32 []:
    T in a prefill, in decode what no sequence will exceed.
    """
    graph = Graph()
    tokens = graph.input("tokens", TensorProto.INT32, [shapes.batch, "T"])
    ops = ATTENTIONS[attention](graph, config, shapes, dtype)
    weights = {each.name: graph.input(each.name, ops.type, each.shape) for each in fused_layout(config)}
    forward(ops, config, weights, tokens)
    return graph.model("decoder")
