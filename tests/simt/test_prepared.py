"""Chains whose weights were packed before, which only CUDA has: on a GPU or in the emulation."""

import os

import pytest
import torch
from conftest import skip

from colorseg.models import NETWORKS
from colorseg.nn.chain import read_layers
from colorseg.ops.chain import preparing, run

pytestmark = pytest.mark.every_device


@pytest.fixture(autouse=True)
def cuda_kernels(device):
    if device == "cpu" and not os.environ.get("COLORSEG_SIMT"):
        skip("simt")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_from_kept_weights(name, dtype):
    # 6 channels, and 6 behind a max-pool: bytes of an argmax would be shared
    model = NETWORKS[name](num_filters=6, num_colors=5).eval().to(dtype)
    layers, kept, images = read_layers(model.links()), {}, torch.rand(2, 1, 16, 12).to(dtype)
    with torch.no_grad():
        want = [run(images, layers), run(images[:1], layers)]
        with preparing(kept):
            first = run(images, layers)
            for p in model.parameters():
                p.add_(1)  # what was kept is used, of another shape too
            later = run(images[:1], layers)
    assert torch.equal(first, want[0])
    assert torch.equal(later, want[1])
    assert len(kept) == 1


def test_batch_statistics_are_not_kept():
    model, kept = NETWORKS["unet"](num_filters=4, num_colors=5), {}
    with preparing(kept), torch.no_grad():
        model(torch.rand(2, 1, 16, 12))
        assert not kept
        assert model.module1[1].num_batches_tracked == 1
