"""ONNX Runtime: the definition is written as an ONNX model, which the runtime optimises and interprets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from backends.contract import SOURCES, Artefact, Engine, MadeFor, Option, Probe, Shapes, Target, Unsupported
from backends.probe_failure import describe_failure
from models.checkpoint import Weights
from models.config import DecoderConfig

INSTALL = "pip install 'onnxruntime>=1.31' 'onnx>=1.19', or 'onnxruntime-gpu>=1.31' for a GPU"
ATTENTIONS = ("auto", "group-query", "standard")


class OnnxRuntime:
    """Runs one graph for prefill and decode, on a CPU or a GPU."""

    name = "onnxruntime"
    machine_code = False  # the runtime brings its kernels, and compiles nothing
    made_for: MadeFor = "kind"
    options: Mapping[str, Option] = {
        "attention": Option(
            "group-query: the runtime's own operators; standard: those of ONNX alone; auto: the faster one",
            ATTENTIONS,
        ),
        "import": Option("where the model comes from; torch: a torch.export graph by torch.onnx", SOURCES),
    }

    def probe(self) -> Probe:
        """Tell whether onnxruntime and onnx are there, and for which devices."""
        try:
            import onnx  # noqa: F401 (models are written with it)
            import onnxruntime

            providers = onnxruntime.get_available_providers()
        except Exception as error:
            return describe_failure(self.name, error, INSTALL)
        versions = {"onnxruntime": str(onnxruntime.__version__), "onnx": version("onnx")}
        if "CUDAExecutionProvider" in providers:
            return Probe(
                versions=versions, devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16")
            )
        return Probe(versions=versions, devices=("cpu",), dtypes=("float32",))

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse 16 bits on a CPU, and an attention beside an import's own; raises Unsupported."""
        if not target.on_gpu and target.dtype == "float16":
            raise Unsupported(
                "the CPU provider has no product in float16: the runtime would widen every weight to float32"
            )
        if not target.on_gpu and target.dtype == "bfloat16":
            raise Unsupported("the CPU provider has no product in bfloat16: use float32")
        if options.get("import") == "torch" and "attention" in options:
            raise Unsupported("import=torch brings its own attention: leave out attention=")

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Write the model; raises Unsupported for what the device has no kernels for."""
        self.check_options(target, options)
        from backends.onnxruntime.engine import Programs
        from backends.onnxruntime.export import export
        from models.rope import rope_tables

        if options.get("import") == "torch":
            return self._import(config, shapes, target, options)
        attention = choose_attention(options.get("attention", ATTENTIONS[0]), target)
        model = export(config, shapes, target.dtype, attention).SerializeToString()
        cos, sin = rope_tables(config, shapes.capacity)
        programs = Programs(model, dict.fromkeys(shapes.prompts, model), {"cos": cos, "sin": sin})
        settings = [f"attention={attention}"] if attention != "standard" else []
        settings += ["one CUDA graph a run"] if target.device != "cpu" else []
        provenance = f"configured: {', '.join(settings)}" if settings else "stock"
        return Artefact(config, shapes, target, options, "common", provenance, payload=programs)

    def _import(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        from backends.onnxruntime.imported import import_programs

        programs = import_programs(config, shapes, target.dtype)
        return Artefact(config, shapes, target, options, "imported", "stock", payload=programs)

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002
        """Tell the versions of what writes the model: the runtime does not shape it."""
        importer = ("torch", "onnxscript") if options.get("import") == "torch" else ()
        return {name: version(name) for name in ("onnx", *importer)}

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Write the models and the tables of angles."""
        from backends.onnxruntime.saved import save_programs

        save_programs(artefact.payload, folder)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Read what was saved."""
        from backends.onnxruntime.saved import open_programs

        return replace(artefact, payload=open_programs(artefact.shapes.prompts, folder))

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Open the sessions with the weights and bind every buffer; raises Unsupported."""
        from backends.onnxruntime.engine import OnnxEngine

        return OnnxEngine(artefact, weights)


def choose_attention(asked: str, target: Target) -> str:
    """Settle `auto`: on a GPU group-query attention has kernels for 16 bits only."""
    if asked != "auto":
        return asked
    return "standard" if target.device != "cpu" and target.dtype == "float32" else "group-query"
