"""The command line's values: read, refused, and completed by the device's defaults."""

import sys
from dataclasses import asdict
from math import inf, nan
from pathlib import Path

import pytest

from models.errors import UserError
from workbench.comparing import request as requests
from workbench.comparing.request import Request, Settings, settle
from workbench.plan import Workload


def test_defaults_of_a_cpu() -> None:
    settings = settle(Request(), "cpu")
    assert (settings.model, settings.dtype, settings.repeats) == ("tiny", "float32", 3)
    assert settings.budget_s == 5.0
    work = settings.workload
    assert (work.batches, work.prompts, work.contexts, work.steps) == ((1,), (64,), (128,), 32)


def test_defaults_of_a_gpu() -> None:
    settings = settle(Request(), "cuda:0")
    assert (settings.model, settings.dtype, settings.repeats) == ("llama-3.2-1b", "bfloat16", 3)
    assert settings.budget_s == 4.0
    work = settings.workload
    assert (work.batches, work.prompts, work.contexts, work.steps) == ((1,), (512,), (1024,), 32)


def test_what_is_given_beats_the_default() -> None:
    work = Workload(phases=("decode",), batches=(4,), prompts=(7,), contexts=(9,), steps=99)
    given = Request(model="qwen3-8b", repeats=1, budget_s=0.5, dtype="float16", **asdict(work))
    assert settle(given, "cpu") == Settings("qwen3-8b", work, "float16", "cpu", 1, 0.5)


def test_every_option_is_read_as_it_was_typed(tmp_path: Path) -> None:
    found = requests.read(
        backends="a,b[x=1]",
        model="tiny",
        phases="decode",
        batch="8,1",
        prompt="64",
        context="128,256",
        steps=48,
        dtype="float16",
        device="cpu",
        repeats=5,
        budget_s=0.5,
        again=True,
        results=tmp_path,
        python=[f"eager={sys.executable}"],
        baseline="b",
        engines=tmp_path / "engines",
    )
    assert found == Request(
        backends=(("a", {}), ("b", {"x": "1"})),
        model="tiny",
        phases=("decode",),
        batches=(1, 8),
        prompts=(64,),
        contexts=(128, 256),
        steps=48,
        dtype="float16",
        device="cpu",
        repeats=5,
        budget_s=0.5,
        baseline="b",
        again=True,
        results=tmp_path,
        engines=tmp_path / "engines",
        pythons={"eager": sys.executable},
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(repeats=0), "--repeats 0"),
        (Request(dtype="fp8"), "--dtype fp8"),
        *[
            (Request(budget_s=seconds), f"--budget {seconds:g}: give a finite number")
            for seconds in (0, inf, nan)
        ],
        (Request(budget_s=1e308), r"--budget 1e\+308: a row is sampled for at most 3600 seconds"),
        (Request(repeats=10**18), "--repeats 1000000000000000000: at most 1000 processes"),
    ],
)
def test_impossible_settings_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(request_, "cpu")


def test_integers_are_sorted_and_unique() -> None:
    assert requests.read_integers("--batch", "8,1,8,32") == (1, 8, 32)
    assert requests.read_integers("--batch", None) is None


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5", "1;2"])
def test_other_lists_are_refused_by_option(text: str) -> None:
    with pytest.raises(UserError, match="--batch"):
        requests.read_integers("--batch", text)


def test_phases_keep_their_order_and_unknown_ones_are_refused() -> None:
    assert requests.read_phases("decode,prefill") == ("prefill", "decode")
    assert requests.read_phases("decode") == ("decode",)
    assert requests.read_phases(None) is None
    with pytest.raises(UserError, match="'decod'"):
        requests.read_phases("prefill,decod")


def test_backend_named_twice_is_refused() -> None:
    assert requests.read_backends("a,a[x=1]") == (("a", {}), ("a", {"x": "1"}))
    with pytest.raises(UserError, match="twice"):
        requests.read_backends("a[x=1,y],a[y,x=1]")
