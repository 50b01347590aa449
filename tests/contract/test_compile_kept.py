"""torch.compile's caches in the engine store: what was compiled is found again, in another folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.utils import counters  # noqa: E402
from torch._inductor.triton_bundler import TritonBundler  # noqa: E402

from backends import registry  # noqa: E402
from backends.compile import Compile  # noqa: E402
from backends.contract import Artefact, Shapes, Target, Unsupported, run_first  # noqa: E402
from models.checkpoint import Weights  # noqa: E402

HERE = Target("cpu", "float32", "any")
SHAPES = Shapes(1, (4,), 12)
GROUP = "triton/KEY/__grp__kernel.json"


@dataclass(frozen=True)
class Kept:
    """An engine that was saved by a process whose caches lay elsewhere."""

    backend: Compile
    artefact: Artefact
    weights: Weights
    folder: Path
    compiled: set[str]
    """The libraries that its compiler made."""
    bundled: bool
    """Whether kernels were bundled with their graphs."""


def point(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let the caches lie in a folder, as workers do."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    torch._inductor.config.bundle_triton_into_fx_graph_cache = True  # as torch has it
    torch._dynamo.reset()
    counters.clear()
    return folder


def libraries(caches: Path) -> set[str]:
    return {path.name for path in caches.rglob("*.so")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, open_family: Callable[[str, str], Weights]) -> Kept:
    """Save an engine, with a list of Triton's in its cache, as a build for a GPU would leave one."""
    backend = registry.find("compile")
    assert isinstance(backend, Compile)
    if not backend.probe().usable:
        pytest.skip(f"compile: {backend.probe().reason}")
    weights, folder = open_family("llama", "float32"), tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        caches = point(patch, tmp_path_factory.mktemp("caches"))
        (caches / GROUP).parent.mkdir(parents=True)
        (caches / GROUP).write_text(f'{{"kernel.cubin": "{caches}/triton/KEY/kernel.cubin"}}')
        artefact = backend.build(weights.config, SHAPES, HERE, {})
        backend.save(artefact, folder)
        bundled = TritonBundler.is_enabled()
    opened = replace(artefact, payload=None, warnings=())
    return Kept(backend, opened, weights, folder, libraries(caches), bundled)


def test_nothing_is_compiled_that_was(kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    caches = point(monkeypatch, tmp_path)
    opened = kept.backend.open(kept.artefact, kept.folder)
    engine = kept.backend.load(opened, kept.weights)
    run_first(engine, [np.zeros((1, 4), np.int32)])
    engine.close()
    assert (counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]) == (2, 0)
    assert libraries(caches) == kept.compiled != set()


def test_no_kernel_is_bundled_since_a_bundle_leads_back_to_the_folder_of_the_build(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point(monkeypatch, tmp_path)
    assert TritonBundler.is_enabled()
    kept.backend.open(kept.artefact, kept.folder)
    assert not kept.bundled and not TritonBundler.is_enabled()


def test_paths_in_the_copy_lead_to_where_it_is_put(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caches = point(monkeypatch, tmp_path)
    kept.backend.open(kept.artefact, kept.folder)
    assert (caches / GROUP).read_text() == f'{{"kernel.cubin": "{caches}/triton/KEY/kernel.cubin"}}'


def test_what_the_plan_warns_of_is_said_of_an_opened_engine_too(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point(monkeypatch, tmp_path)
    searched = replace(kept.artefact, options={"mode": "max-autotune-no-cudagraphs"})
    assert "chosen by timing" in kept.backend.open(searched, kept.folder).warnings[0]


def test_an_engine_of_another_device_is_refused(kept: Kept, tmp_path: Path) -> None:
    for path in kept.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "device.txt").write_text("NVIDIA H100 PCIe with CUDA 13.0")
    with pytest.raises(Unsupported, match=r"compiled for NVIDIA H100 PCIe .* this is a CPU"):
        kept.backend.open(kept.artefact, tmp_path)


def test_it_is_not_built_where_the_gpu_is_not(kept: Kept) -> None:
    with pytest.raises(Unsupported, match="build where there is such a GPU"):
        kept.backend.compilers(Target("cuda:0", "bfloat16", "sm_90", card="h100"), {})
