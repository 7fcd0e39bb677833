"""Sequentials that optimize_for_inference takes as one chain, and batch norms for them."""

from torch import nn

from colorseg.nn import ConvBNReLU


def randomize(model):
    """Batch norms of ``model`` that have seen data, with gammas of both signs; and eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            module.running_mean.normal_(), module.running_var.uniform_(0.2, 2)
    return model.eval()


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, **({"padding": 1} | options))


SEQUENTIALS = {
    "one convolution": lambda: nn.Sequential(conv(3, 5)),
    "convolutions": lambda: nn.Sequential(conv(3, 8), conv(8, 9), conv(9, 5, stride=2)),
    "no bias": lambda: nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), conv(8, 5)),
    "ends in a block": lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()),
    "ends in a batch norm": lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)),
    "ends in a pool": lambda: nn.Sequential(
        conv(3, 8), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "ends in an upsample": lambda: nn.Sequential(
        conv(3, 8), nn.Upsample(scale_factor=2), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "pool, then upsample": lambda: nn.Sequential(
        conv(3, 8), nn.MaxPool2d(2), nn.BatchNorm2d(8),
        conv(8, 8), nn.Upsample(scale_factor=2), nn.BatchNorm2d(8), nn.ReLU(),
        conv(8, 5),
    ),
    "nested blocks": lambda: nn.Sequential(
        ConvBNReLU(3, 8, 3, resample="maxpool2"),
        ConvBNReLU(8, 9, 4, resample="upsample2"),
        nn.Sequential(nn.ConvTranspose2d(9, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU()),
        ConvBNReLU(8, 8, 3, relu=False, dilation=2),
        conv(8, 5),
    ),
    "without gammas": lambda: nn.Sequential(ConvBNReLU(3, 8, 3, affine=False), conv(8, 5)),
}  # fmt: skip
