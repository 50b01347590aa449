"""Preset weights made by torch, on any device it has here, are bit for bit those made by numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.weights import hash_bytes, tensor_key  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.bias"])
@pytest.mark.parametrize("start", [0, 2**29 - 3, 2**40])
def test_torch_and_numpy_agree_bit_for_bit(device: str, name: str, start: int) -> None:
    key = tensor_key(7, name)
    with torch.device(device):
        made = hash_bytes(torch, key, start, 10_000)
    assert made.device.type == device
    assert np.array_equal(made.cpu().numpy(), hash_bytes(np, key, start, 10_000))
