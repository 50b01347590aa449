"""The operations with TIR of ours where Relax's own operators are slow; the products stay Relax's."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from backends.tvm import cpu_kernels
from backends.tvm.ops import RelaxOps, Var, op, sizes


class CpuOps(RelaxOps):
    """Norms and attention in one pass each; prefill and decode attend by the same kernel."""

    def norm(self, x: Var, weight: Var) -> Var:
        """Norm x over its last dimension and scale it, in float32, rounded once."""
        *rows, width = sizes(x)
        flat = self.emit(op.reshape(x, (prod(rows), width)))
        kernel = cpu_kernels.rms_norm(prod(rows), width, self.dtype, self.config.norm_eps)
        normed = self.call(kernel, [flat, weight], (prod(rows), width))
        return self.emit(op.reshape(normed, (*rows, width)))

    def attend_cached(self, q: Var, k: Var, v: Var, keys: Var, values: Var) -> Var:  # noqa: ARG002
        """Attend with q [B, T, H, Dh] to all that is cached up to each token."""
        kernel = cpu_kernels.attend(sizes(q), sizes(keys), self.dtype)
        return self.call(kernel, [q, keys, values, self.position], sizes(q))

    def argmax(self, logits: Var) -> Var:
        """Return the logits themselves: `finish` chooses while it copies them."""
        return logits

    def finish(self, step: tuple[Var, Var], length: int, state: Sequence[Var]) -> list[Var]:
        """Keep the logits, choose the next token and move the position on."""
        kernel = cpu_kernels.finish(*sizes(step[0]), self.dtype, length)
        return self.call_inplace(kernel, [step[0], self.position, *state], [2, 3, 4])
