"""The model's operations as ONNX nodes, with each way to attend: standard operators, or ONNX Runtime's own.

One graph serves prefill and decode. Between the operations x is [B * T, D]: a matrix, as Gemm takes it.
B sequences, T new tokens, D hidden size, H query heads, K key/value heads, Dh head size, C capacity.
"""

import numpy as np
from onnx import TensorProto

from backends.contract import Shapes
from backends.onnxruntime.graph import CONTRIB, Graph
from models.config import DecoderConfig

ELEMENT_TYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
}
"""What ONNX calls the dtypes of a model."""


class OnnxOps:
    """Everything but attention over the cache, which a subclass adds as `attend_cached`."""

    def __init__(self, graph: Graph, config: DecoderConfig, shapes: Shapes, dtype: str) -> None:
        self.graph, self.config, self.shapes = graph, config, shapes
        self.type = ELEMENT_TYPES[dtype]
        self.positions = graph.input("positions", TensorProto.INT32, [shapes.batch, "T"])
        for table in ("cos", "sin"):
            graph.input(table, TensorProto.FLOAT, [shapes.capacity, config.head_dim // 2])
        self.last = graph.add("Gather", self.positions, graph.constant([-1]), axis=1)  # [B, 1]
        advanced = graph.output("next.positions", TensorProto.INT32, [shapes.batch, 1])
        graph.add("Add", self.last, graph.constant(1, np.int32), outputs=[advanced])

    def embed(self, tokens: str, table: str) -> str:
        """Look up tokens [B, T] in table [V, D]."""
        return self.graph.add("Gather", table, self.reshape(tokens, -1))

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """Multiply x by weight [O, I] transposed, add bias [O]."""
        return self.graph.add("Gemm", x, weight, *([bias] if bias else []), transB=1)

    def norm(self, x: str, weight: str) -> str:
        """Norm x over its last dimension, in float32."""
        return self.graph.add("RMSNormalization", x, weight, epsilon=self.config.norm_eps)

    def add_rms_norm(self, x: str, residual: str | None, weight: str) -> tuple[str, str]:
        """Add, norm and scale; returns (normed, sum)."""
        total = self.graph.add("Add", x, residual) if residual else x
        return self.norm(total, weight), total

    def split_heads(self, qkv: str) -> tuple[str, str, str]:
        """Split qkv into q [B * T, H * Dh], k and v [B * T, K * Dh]."""
        config = self.config
        sizes = [count * config.head_dim for count in (config.heads, config.kv_heads, config.kv_heads)]
        q, k, v = (f"{qkv}.{part}" for part in "qkv")
        self.graph.add("Split", qkv, self.graph.constant(sizes), outputs=[q, k, v], axis=-1)
        return q, k, v

    def attend(self, q: str, k: str, v: str, layer: int, q_norm: str | None, k_norm: str | None) -> str:
        """Norm q and k, then rotate, cache and attend as the subclass does; returns [B * T, H * Dh]."""
        config = self.config
        q = self.part(q, config.heads, q_norm)
        k, v = self.part(k, config.kv_heads, k_norm), self.part(v, config.kv_heads, None)
        out = self.attend_cached(q, k, v, *(self.cache(f"{part}.{layer}") for part in ("keys", "values")))
        return self.reshape(out, -1, config.heads * config.head_dim)

    def attend_cached(self, q: str, k: str, v: str, keys: str, values: str) -> str:
        """Rotate q and k [B, T, * Dh], write k and v into keys and values [B, K, C, Dh], attend."""
        raise NotImplementedError

    def part(self, x: str, heads: int, norm: str | None) -> str:
        """Shape q, k or v [B, T, heads * Dh], each head normed where there is a weight to do it."""
        batch, head_dim = self.shapes.batch, self.config.head_dim
        if norm is not None:
            x = self.norm(self.reshape(x, batch, -1, heads, head_dim), norm)
        return self.reshape(x, batch, -1, heads * head_dim)

    def rotate(self, x: str, heads: int, positions: str) -> str:
        """Rotate x [B, T, heads * Dh] to int64 positions [B, T], in float32 whatever the stored dtype."""
        wide = self.cast(x, TensorProto.FLOAT)
        rotated = self.graph.add("RotaryEmbedding", wide, "cos", "sin", positions, num_heads=heads)
        return self.cast(rotated, self.type)

    def cache(self, name: str) -> str:
        """Declare one layer's keys or values, as input and, under `next.`, as output."""
        shapes, config = self.shapes, self.config
        shape = [shapes.batch, config.kv_heads, shapes.capacity, config.head_dim]
        self.graph.output(f"next.{name}", self.type, shape)
        return self.graph.input(name, self.type, shape)

    def swiglu(self, gate_up: str) -> str:
        """Compute silu(gate) * up in float32, rounded once."""
        gate, up = (f"{gate_up}.{part}" for part in ("gate", "up"))
        self.graph.add("Split", gate_up, outputs=[gate, up], axis=-1, num_outputs=2)
        activated = self.silu(self.cast(gate, TensorProto.FLOAT))
        return self.cast(self.graph.add("Mul", activated, self.cast(up, TensorProto.FLOAT)), self.type)

    def silu(self, x: str) -> str:
        """Multiply x by its sigmoid."""
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", x))

    def lm_head(self, x: str, weight: str) -> str:
        """Multiply the last position of each sequence by weight [V, D] transposed; float32 [B, V]."""
        batch, config = self.shapes.batch, self.config
        sequences = self.reshape(x, batch, -1, config.hidden_size)
        last = self.graph.add("Gather", sequences, self.graph.constant(-1), axis=1)
        logits = self.graph.output("logits", TensorProto.FLOAT, [batch, config.vocab_size])
        if self.type == TensorProto.FLOAT:
            return self.graph.add("Gemm", last, weight, outputs=[logits], transB=1)
        return self.graph.add("Cast", self.linear(last, weight), outputs=[logits], to=TensorProto.FLOAT)

    def argmax(self, logits: str) -> str:
        """Choose the greedy next token of each row, the first of equals, int32 [B, 1]."""
        chosen = self.graph.add("ArgMax", logits, axis=-1)
        tokens = self.graph.output("next.tokens", TensorProto.INT32, [self.shapes.batch, 1])
        return self.graph.add("Cast", chosen, outputs=[tokens], to=TensorProto.INT32)

    def reshape(self, x: str, *shape: int) -> str:
        """View x in another shape."""
        return self.graph.add("Reshape", x, self.graph.constant(shape))

    def cast(self, x: str, element_type: int) -> str:
        """Convert x between the stored dtype and float32; nothing to do where they are the same."""
        return x if self.type == TensorProto.FLOAT else self.graph.add("Cast", x, to=element_type)


class StandardOps(OnnxOps):
    """Operators of the ONNX standard alone."""

    def __init__(self, graph: Graph, config: DecoderConfig, shapes: Shapes, dtype: str) -> None:
        super().__init__(graph, config, shapes, dtype)
        self.places = graph.add("Cast", self.positions, to=TensorProto.INT64)  # [B, T]
        self.first = graph.add("Gather", self.places, graph.constant(0), axis=1)  # [B]
        last = graph.add("Gather", self.places, graph.constant(-1), axis=1)
        self.filled = graph.add("Add", last, graph.constant(1))  # [B]

    def attend_cached(self, q: str, k: str, v: str, keys: str, values: str) -> str:
        """Attend to the whole capacity; nothing beyond the last position is seen, nor beyond one's own."""
        config, add = self.config, self.graph.add
        q, k = self.rotate(q, config.heads, self.places), self.rotate(k, config.kv_heads, self.places)
        for cache, new in ((keys, k), (values, v)):
            heads = self.heads_first(new, config.kv_heads)
            add("TensorScatter", cache, heads, self.first, outputs=[f"next.{cache}"])
        q = self.heads_first(q, config.heads)
        cached = (f"next.{keys}", f"next.{values}")
        out = add(
            "Attention",
            *(q, *cached, "", "", "", self.filled),
            is_causal=1,
            softmax_precision=TensorProto.FLOAT,
        )
        return add("Transpose", out, perm=[0, 2, 1, 3])

    def heads_first(self, x: str, heads: int) -> str:
        """Turn x [B, T, heads * Dh] into [B, heads, T, Dh]."""
        split = self.reshape(x, self.shapes.batch, -1, heads, self.config.head_dim)
        return self.graph.add("Transpose", split, perm=[0, 2, 1, 3])


class GroupQueryOps(OnnxOps):
    """ONNX Runtime's own operators: one rotates, writes the cache and attends to what is filled of it."""

    def __init__(self, graph: Graph, config: DecoderConfig, shapes: Shapes, dtype: str) -> None:
        super().__init__(graph, config, shapes, dtype)
        self.total = graph.input("total", TensorProto.INT32, [])
        self.newest = self.reshape(self.last, shapes.batch)
        # It takes its angles in the stored dtype, and these are to be float32.
        self.rotates = self.type == TensorProto.FLOAT
        if not self.rotates:
            self.places = graph.add("Cast", self.positions, to=TensorProto.INT64)
        self.packed = self.rotates and not config.qk_norm

    def split_heads(self, qkv: str) -> tuple[str, str, str]:
        """Leave q, k and v together where nothing is left to do before the node that takes them so."""
        if not self.packed:
            return super().split_heads(qkv)
        size = (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim
        return self.reshape(qkv, self.shapes.batch, -1, size), "", ""

    def part(self, x: str, heads: int, norm: str | None) -> str:
        """Shape q, k or v [B, T, heads * Dh], unless they are together."""
        return x if self.packed else super().part(x, heads, norm)

    def add_rms_norm(self, x: str, residual: str | None, weight: str) -> tuple[str, str]:
        """Add, norm and scale in one node; returns (normed, sum)."""
        if residual is None:
            return super().add_rms_norm(x, residual, weight)
        normed, total = f"{x}.normed", f"{x}.sum"
        self.graph.add(
            "SkipSimplifiedLayerNormalization",
            *(x, residual, weight),
            outputs=[normed, "", "", total],
            domain=CONTRIB,
            epsilon=self.config.norm_eps,
        )
        return normed, total

    def attend_cached(self, q: str, k: str, v: str, keys: str, values: str) -> str:
        """Attend to what is filled: the node finds the new positions by the newest of each sequence."""
        config = self.config
        if not self.rotates:
            q, k = self.rotate(q, config.heads, self.places), self.rotate(k, config.kv_heads, self.places)
        tables = ("cos", "sin") if self.rotates else ()
        return self.graph.add(
            "GroupQueryAttention",
            *(q, k, v, keys, values, self.newest, self.total, *tables),
            outputs=[f"{q}.attended", f"next.{keys}", f"next.{values}"],
            domain=CONTRIB,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=int(self.rotates),
        )

    def silu(self, x: str) -> str:
        """Multiply x by its sigmoid in one node."""
        return self.graph.add("QuickGelu", x, domain=CONTRIB, alpha=1.0)
