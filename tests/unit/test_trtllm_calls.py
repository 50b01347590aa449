"""What `trtllm` calls of tensorrt_llm, bound to the published interface of 1.2: it is not installed here."""

import inspect
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import backends.trtllm as trtllm
from backends.contract import Shapes, Target, Unsupported
from backends.trtllm import TensorRtLlm, service
from backends.trtllm.forcing import Forcing
from backends.trtllm.service import Order, Service, start_engine, start_pytorch
from models.config import PRESETS
from tests.published import Published, entry, signature

TINY = PRESETS["tiny"]
SHAPES = Shapes(batch=2, prompts=(64, 128), capacity=160)
ORDER = Order(Path("checkpoint"), SHAPES, "bfloat16", Path("kept"))
PROMPTS = [[1, 2, 3], [4, 5, 6]]


def answer(inputs: list[list[int]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
    """Answer with zeros, and let logits processors see what the vendor's runtime would show them."""
    each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(inputs)
    for row, parameters in enumerate(each):
        for step in range(parameters.max_tokens if parameters.logits_processor else 0):
            logits = Logits(np.full((1, 1, 8), 10 * row + step, np.float32))
            called = entry("tensorrt_llm.sampling_params", "LogitsProcessor.__call__")
            values = {"req_id": 7, "logits": logits, "token_ids": [[]], "stream_ptr": None, "client_id": None}
            bound = signature(called).bind(**values)
            parameters.logits_processor(*bound.args)
    return [published_output([0] * parameters.max_tokens) for parameters in each]


def published_output(tokens: list[int]) -> SimpleNamespace:
    """Return an answer that has the tokens where the vendor's has them, and nothing else."""
    ((many, (inner,)),) = entry("tensorrt_llm.llmapi", "RequestOutput")["attributes"].items()
    return SimpleNamespace(**{many: [SimpleNamespace(**{inner: tokens})]})


class Logits(np.ndarray):
    """A CPU tensor as far as a logits processor asks."""

    def __new__(cls, values: np.ndarray) -> "Logits":
        return values.view(cls)

    def float(self) -> "Logits":
        return self

    cpu = float

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


@pytest.fixture
def vendor() -> Published:
    return Published({"LLM": lambda values: SimpleNamespace(generate=answer, shutdown=lambda: None)})


def called(vendor: Published, name: str) -> list[dict[str, Any]]:
    return [values for key, values in vendor.calls if key == name]


@pytest.mark.parametrize(
    ("start", "llm"),
    [(start_pytorch, "tensorrt_llm.LLM"), (start_engine, "tensorrt_llm._tensorrt_engine.LLM")],
)
def test_started_with_the_checkpoint_fixed_sizes_and_no_reuse(
    start: Any, llm: str, vendor: Published
) -> None:
    start(vendor.find, ORDER)
    (values,) = called(vendor, llm)
    assert values["model"] == "checkpoint"
    assert values["dtype"] == "bfloat16"
    assert values["skip_tokenizer_init"] is True
    sizes = {name: values[name] for name in service.limits(SHAPES)}
    # 160 positions in the cache, the last token of a request not among them.
    assert sizes == {
        "max_batch_size": 2,
        "max_input_len": 160,
        "max_seq_len": 161,
        "max_num_tokens": 320,
    }
    cache = values["kv_cache_config"]
    assert cache.enable_block_reuse is False
    assert cache.enable_partial_reuse is False
    assert cache.max_tokens == 2 * 7 * 32  # six blocks of 32 hold 161 tokens, and one is spare


def test_pytorch_backend_captures_the_graph_of_this_batch(vendor: Published) -> None:
    start_pytorch(vendor.find, ORDER)
    (values,) = called(vendor, "tensorrt_llm.LLM")
    assert values["cuda_graph_config"].batch_sizes == [2]


def test_engine_is_built_for_these_sizes_with_the_gemm_plugin_and_kept(vendor: Published) -> None:
    start_engine(vendor.find, ORDER)
    (values,) = called(vendor, "tensorrt_llm._tensorrt_engine.LLM")
    build = values["build_config"]
    assert {name: getattr(build, name) for name in service.limits(SHAPES)} == service.limits(SHAPES)
    assert build.opt_batch_size == 2
    assert vars(build.plugin_config) == {"gemm_plugin": "auto"}
    assert values["enable_build_cache"].cache_root == Path("kept")


def test_requests_have_fixed_token_counts_and_ignore_the_end(vendor: Published) -> None:
    llm = Service(vendor.find, start_pytorch(vendor.find, ORDER), vocab=8)
    assert llm.generate(PROMPTS, 5) == [[0] * 5] * 2
    (request,) = called(vendor, "LLM.generate")
    assert request["inputs"] == PROMPTS
    assert request["use_tqdm"] is False
    parameters = vars(request["sampling_params"])
    assert parameters["max_tokens"] == 5
    assert parameters["ignore_eos"] is True
    assert parameters["logits_processor"] is None  # nothing of the gate's is inside the clock
    assert not {"temperature", "top_k", "top_p"} & parameters.keys()  # greedy
    llm.close()
    assert called(vendor, "LLM.shutdown") == [{}]


def test_logits_are_those_of_the_last_token_of_each_sequence(vendor: Published) -> None:
    llm = Service(vendor.find, start_pytorch(vendor.find, ORDER), vocab=6)
    logits = llm.logits(PROMPTS, [[4, 5], [6, 7]], count=3)
    assert logits.tolist() == [[2.0] * 6, [12.0] * 6]  # padded to 8 there


def test_logits_that_never_come_are_no_verification(vendor: Published) -> None:
    silent = SimpleNamespace(generate=lambda *_, **__: [], shutdown=lambda: None)
    with pytest.raises(RuntimeError, match="cannot be verified: no logits came of sequences 0, 1"):
        Service(vendor.find, silent, vocab=8).logits(PROMPTS, [[], []], count=1)


def test_processor_takes_what_the_vendor_calls_it_with() -> None:
    published = entry("tensorrt_llm.sampling_params", "LogitsProcessor.__call__")
    ours = list(inspect.signature(Forcing.__call__).parameters)[1:]
    assert ours == list(signature(published).parameters)


def test_forced_tokens_win_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    forcing = Forcing([3, 1], keep=2, path=str(tmp_path / "kept.npy"))
    winners = []
    for step in range(4):
        logits = Logits(np.arange(5, dtype=np.float32)[None, None] + step)
        forcing(0, logits, [[]], None, None)  # type: ignore[arg-type]
        winners.append(int(logits.argmax()))
    assert winners == [3, 1, 4, 4]
    assert np.load(tmp_path / "kept.npy").tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("module", "name"), [("tensorrt_llm", "ModelRunnerCpp"), ("tensorrt_llm.llmapi", "LLM.generate")]
)
def test_what_is_not_published_is_not_found(module: str, name: str, vendor: Published) -> None:
    with pytest.raises(LookupError, match="publishes no"):
        vendor.find(module, name)
    with pytest.raises(TypeError, match="made_up"):
        vendor.find("tensorrt_llm", "SamplingParams")(made_up=1)


def test_backend_says_what_it_is_and_that_nobody_ran_it() -> None:
    artefact = TensorRtLlm().build(TINY, SHAPES, Target("cuda:0", "bfloat16", "sm_90"), {"engine": ""})
    assert (artefact.definition, artefact.provenance.split(":")[0]) == ("own", "configured")
    assert artefact.warnings[0].startswith("not yet run on hardware by us")


def test_two_engines_at_once_or_another_gpu_are_refused() -> None:
    with pytest.raises(Unsupported, match="two engines"):
        TensorRtLlm().build(
            TINY, SHAPES, Target("cuda:0", "bfloat16", "sm_90"), {"engine": "", "pytorch": ""}
        )
    with pytest.raises(Unsupported, match="CUDA_VISIBLE_DEVICES"):
        TensorRtLlm().build(TINY, SHAPES, Target("cuda:1", "bfloat16", "sm_90"), {})


def test_release_without_engines_is_unsupported_by_name() -> None:
    with pytest.raises(Unsupported, match=r"has no tensorrt_llm\._tensorrt_engine\.LLM"):
        TensorRtLlm().find("tensorrt_llm._tensorrt_engine", "LLM")


def test_probe_says_what_is_missing_and_the_vendors_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(trtllm, "version", nowhere)
    probe = TensorRtLlm().probe()
    assert not probe.usable
    assert not probe.in_process
    assert "tensorrt_llm is not installed" in str(probe.reason)
    assert "not yet run on hardware by us" in str(probe.reason)
    assert "pip3 install tensorrt_llm==1.2.1" in str(probe.install)
    assert "--python trtllm=" in str(probe.install)
