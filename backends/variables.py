"""What the environment tells compilers and libraries, which shapes what they make as their versions do."""

import os

COMPILERS_AND_LIBRARIES = (
    "CUBLAS",
    "CUDNN_",
    "FLASHINFER_",
    "IREE_",
    "JAX_",
    "KMP_",
    "MKL_",
    "NVCC_",
    "NVIDIA_TF32",
    "OMP_",
    "ORT_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "TVM_",
    "XLA_",
)
"""How the names of such variables begin."""
AT_START = dict(os.environ)
"""What this process was started with: frameworks set some for themselves once they are imported."""
OURS = ("_CACHE_DIR", "_CACHE_PATH", "_WORKSPACE_BASE", "_NUM_THREADS")
"""How those end that the workbench sets for every worker: where caches lie, how many threads there are."""


def set_variables(beginnings: tuple[str, ...] = COMPILERS_AND_LIBRARIES) -> dict[str, str]:
    """Return the variables that are set, as the version of an `environment`; empty if there are none."""
    names = [name for name in sorted(AT_START) if name.startswith(beginnings) and not name.endswith(OURS)]
    return {"environment": " ".join(f"{name}={AT_START[name]}" for name in names)} if names else {}
