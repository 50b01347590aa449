"""Which faults a model can have, and where in it they are; what they do is shown on planted engines."""

from dataclasses import replace

import pytest

from models.config import PRESETS
from workbench.checking.mutants import MUTANTS, mutants_of, skipped_layer, stale_page

TINY = PRESETS["tiny"]


@pytest.mark.parametrize(("kv_heads", "permuted"), [(1, False), (2, True)])
def test_one_kv_head_alone_cannot_be_permuted(kv_heads: int, permuted: bool) -> None:
    found = mutants_of(replace(TINY, kv_heads=kv_heads))
    assert ("KV heads permuted" in [mutant.name for mutant in found]) is permuted
    assert len(found) == len(MUTANTS) - (not permuted)


@pytest.mark.parametrize(("length", "first"), [(1, 0), (15, 0), (16, 0), (17, 16), (32, 16), (33, 32)])
def test_the_stale_page_is_that_of_the_newest_position(length: int, first: int) -> None:
    assert list(stale_page(length)) == list(range(first, length))


@pytest.mark.parametrize(("layers", "skipped"), [(1, 0), (2, 1), (3, 1), (32, 16)])
def test_the_layer_skipped_is_the_middle_one(layers: int, skipped: int) -> None:
    assert skipped_layer(layers) == skipped
