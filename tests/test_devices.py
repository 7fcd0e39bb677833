"""Tensors on several devices: an error, where torch would call a fake kernel with real tensors."""

import pytest
import torch

from colorseg import ops
from colorseg.models import UNet
from colorseg.nn import ConvBNReLU

X, WEIGHT, TARGET = torch.rand(1, 3, 4, 4), torch.rand(2, 3, 3, 3), torch.zeros(1, 4, 4).long()
STATISTICS = torch.zeros(2), torch.ones(2)
CALLS = {
    "conv2d": lambda: ops.conv2d(X, WEIGHT.to("meta")),
    "conv_bn_relu": lambda: ops.conv_bn_relu(
        X, WEIGHT, None, None, None, *(t.to("meta") for t in STATISTICS)
    ),
    "soft_iou_loss": lambda: ops.soft_iou_loss(X, TARGET.to("meta")),
    "color_cross_entropy": lambda: ops.color_cross_entropy(X, TARGET.to("meta")),
    "nearest_color": lambda: ops.nearest_color(X, torch.rand(4, 3, device="meta")),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_tensor_on_meta(name):
    with pytest.raises(RuntimeError, match=r"must be on one device, got (cpu and meta|meta and)"):
        CALLS[name]()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: UNet(num_filters=2), lambda: ConvBNReLU(1, 2, 3)])
def test_parameters_that_were_never_made(make, training):
    with torch.device("meta"):
        model = make().train(training)
    assert model(torch.rand(2, 1, 8, 8, device="meta")).is_meta
    with pytest.raises(RuntimeError, match="must be on one device"):
        model(torch.rand(2, 1, 8, 8))
