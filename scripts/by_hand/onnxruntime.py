"""A Llama in plain ONNX Runtime, as one would write it for oneself: onnx.helper, weights inside the model."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from backends.contract import Shapes
from models.checkpoint import open_checkpoint
from models.rope import rope_tables

OWN = "com.microsoft"
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
NODES = []


def add(operator, *inputs, to=None, **attributes):
    """Add a node; returns its first output."""
    outputs = to or [f"{operator}{len(NODES)}"]
    NODES.append(helper.make_node(operator, inputs, outputs, **attributes))
    return outputs[0]


def norm(config, x, total, weight):
    """Add x to the sum so far and norm it; returns (normed, sum)."""
    if total is None:
        return add("RMSNormalization", x, weight, epsilon=config.norm_eps), x
    to, operator = [f"{x}_normed", "", "", f"{x}_sum"], "SkipSimplifiedLayerNormalization"
    return add(operator, x, total, weight, to=to, domain=OWN, epsilon=config.norm_eps), f"{x}_sum"


def decode_layer(config, layer, x, total):
    """Add one layer."""
    prefix, names = f"layers.{layer}.", [f"k{layer}", f"v{layer}"]
    x, total = norm(config, x, total, f"{prefix}attention_norm.weight")
    qkv = add("MatMul", x, f"{prefix}qkv.weight")
    to = [f"attended{layer}", *(f"new_{name}" for name in names)]
    heads = {"num_heads": config.heads, "kv_num_heads": config.kv_heads, "do_rotary": 1}
    inputs = (qkv, "", "", *names, "newest", "total", "cos", "sin")
    x = add("GroupQueryAttention", *inputs, to=to, domain=OWN, **heads)
    x, total = norm(config, add("MatMul", x, f"{prefix}o.weight"), total, f"{prefix}mlp_norm.weight")
    up = f"up{layer}"
    gate = add(
        "Split", add("MatMul", x, f"{prefix}gate_up.weight"), to=[f"gate{layer}", up], axis=-1, num_outputs=2
    )
    gated = add("Mul", add("Mul", gate, add("Sigmoid", gate)), up)
    return add("MatMul", gated, f"{prefix}down.weight"), total


def make_model(config, batch, cache, weights):
    """Write the model; `cache` has the shape of each layer's keys and values by name."""
    NODES.clear()
    x, total = add("Gather", "embed.weight", "tokens"), None
    for layer in range(config.layers):
        x, total = decode_layer(config, layer, x, total)
    x, _ = norm(config, x, total, "norm.weight")
    add("MatMul", add("Gather", x, "last", axis=1), "head.weight", to=["logits"])
    add("ArgMax", "logits", axis=-1, to=["chosen"])
    info = helper.make_tensor_value_info
    inputs = [info("tokens", INT64, [batch, "T"]), info("newest", INT32, [batch]), info("total", INT32, [])]
    outputs = [info("logits", FLOAT, [batch, config.vocab_size]), info("chosen", INT64, [batch, 1])]
    inputs += [info(name, FLOAT, shape) for name, shape in cache.items()]
    outputs += [info(f"new_{name}", FLOAT, shape) for name, shape in cache.items()]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(OWN, 1)]
    graph = helper.make_graph(NODES, "llama", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


class ByHand:
    """A session over bound arrays; the position is counted on the host."""

    def __init__(self, folder: Path, dtype: str, shapes: Shapes) -> None:
        checkpoint = open_checkpoint(folder, dtype)
        config, batch = checkpoint.config, shapes.batch
        weights = dict(checkpoint.arrays())
        weights.setdefault("head.weight", weights["embed.weight"])
        weights |= {n: w.T.copy() for n, w in weights.items() if w.ndim == 2 and n != "embed.weight"}
        weights["cos"], weights["sin"] = rope_tables(config, shapes.capacity)
        weights["last"] = np.array(-1)
        self.cache = [f"{part}{layer}" for layer in range(config.layers) for part in "kv"]
        shape = (batch, config.kv_heads, shapes.capacity, config.head_dim)
        model = make_model(config, batch, dict.fromkeys(self.cache, shape), weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
        self.session = ort.InferenceSession(model.SerializeToString(), options)
        self.newest = np.zeros(batch, np.int32)
        arrays = {
            "newest": self.newest,
            "logits": np.zeros((batch, config.vocab_size), np.float32),
            "chosen": np.zeros((batch, 1), np.int64),
            **{name: np.zeros(shape, np.float32) for name in self.cache},
        }
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        self.step = self.bind(arrays["chosen"], shapes.capacity)

    def bind(self, tokens, total):
        """Bind the session to tokens [B, T], to at most `total` positions and to the arrays."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("tokens", tokens)
        binding.bind_cpu_input("total", np.array(total, np.int32))
        for name in ("newest", *self.cache):
            binding.bind_ortvalue_input(name, self.values[name])
        for name in ("logits", "chosen", *(f"new_{name}" for name in self.cache)):
            binding.bind_ortvalue_output(name, self.values[name.removeprefix("new_")])
        return binding

    def stage(self, tokens: np.ndarray) -> None:
        """Take tokens [B, T]."""
        self.length = tokens.shape[1]
        self.prompt = self.bind(tokens.astype(np.int64), self.length)

    def prefill(self) -> None:
        """Run the staged tokens."""
        self.newest[:] = self.length - 1
        self.session.run_with_iobinding(self.prompt)

    def decode(self) -> None:
        """Run one step from the token chosen last."""
        self.newest += 1
        self.session.run_with_iobinding(self.step)

    def rewind(self, length: int) -> None:
        """Set the position of the next step."""
        self.newest[:] = length - 1

    def logits(self) -> np.ndarray:
        """Return the last step's logits."""
        return np.array(self.values["logits"].numpy())

    def sync(self) -> None:
        """Return at once: a run returns when it is done."""
