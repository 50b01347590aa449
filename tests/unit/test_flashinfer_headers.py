"""Where FlashInfer's compilers find the headers of CUDA's libraries."""

import os
from pathlib import Path

import pytest

from backends.flashinfer.kernels import offer_headers


@pytest.mark.parametrize("before", [None, "/own/headers"])
def test_headers_of_the_wheels_are_searched_after_what_the_user_names(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = tmp_path / "nvidia/cu13/include"
    headers.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", before or "")
    offer_headers()
    found = os.environ["CPLUS_INCLUDE_PATH"].split(os.pathsep)
    assert str(headers) in found
    assert found[0] == before or before is None
    assert "" not in found  # the folder of work, to a compiler
