"""The blocks and networks in plain torch, written down as a course would."""

import torch
from torch import nn

from colorseg.nn import functional


def plain_block(inputs, outputs, kernel, *, resample=None, relu=True, **options):
    """What ``ConvBNReLU`` with the same arguments stands for."""
    conv = {"stride": 1, "dilation": 1, "transposed": False}
    conv |= {k: options.pop(k) for k in (*conv, "groups", "bias") if k in options}
    stride, dilation, transposed = conv["stride"], conv["dilation"], conv.pop("transposed")
    padding = (kernel - 1) // 2 * dilation
    if transposed:
        conv["output_padding"] = stride + 2 * padding - dilation * (kernel - 1) - 1
    elif stride == 1 and kernel % 2 == 0:
        padding = "same"
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers = [make(inputs, outputs, kernel, padding=padding, **conv)]
    if resample:
        layers.append(nn.MaxPool2d(2) if resample == "maxpool2" else nn.Upsample(scale_factor=2))
    layers.append(nn.BatchNorm2d(outputs, **options))
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class PlainPoolUpsampleNet(nn.Module):
    def __init__(self, kernel=3, nf=32, nc=24, nic=1):
        super().__init__()
        self.module1 = plain_block(nic, nf, kernel, resample="maxpool2")
        self.module2 = plain_block(nf, 2 * nf, kernel, resample="maxpool2")
        self.module3 = plain_block(2 * nf, nf, kernel, resample="upsample2")
        self.module4 = plain_block(nf, nc, kernel, resample="upsample2")
        self.module_last = nn.Conv2d(nc, nc, kernel, padding="same")

    def forward(self, x):
        return self.module_last(self.module4(self.module3(self.module2(self.module1(x)))))


class PlainConvTransposeNet(nn.Module):
    def __init__(self, kernel=3, nf=32, nc=24, nic=1):
        super().__init__()
        self.module1 = plain_block(nic, nf, kernel, stride=2)
        self.module2 = plain_block(nf, 2 * nf, kernel, stride=2)
        self.module3 = plain_block(2 * nf, nf, kernel, stride=2, transposed=True)
        self.module4 = plain_block(nf, nc, kernel, stride=2, transposed=True)
        self.module_last = nn.Conv2d(nc, nc, kernel, padding="same")

    def forward(self, x):
        return self.module_last(self.module4(self.module3(self.module2(self.module1(x)))))


class PlainUNet(nn.Module):
    def __init__(self, kernel=3, nf=32, nc=24, nic=1):
        super().__init__()
        self.module1 = plain_block(nic, nf, kernel, stride=2)
        self.module2 = plain_block(nf, 2 * nf, kernel, stride=2)
        self.module3 = plain_block(2 * nf, nf, kernel, stride=2, transposed=True)
        self.module4 = plain_block(2 * nf, nc, kernel, stride=2, transposed=True)
        self.module_last = nn.Conv2d(nc + nic, nc, kernel, padding="same")

    def forward(self, x):
        half = self.module1(x)
        up = self.module3(self.module2(half))
        full = self.module4(torch.cat([up, half], 1))
        return self.module_last(torch.cat([full, x], 1))


PLAIN = {
    "PoolUpsampleNet": PlainPoolUpsampleNet,
    "ConvTransposeNet": PlainConvTransposeNet,
    "UNet": PlainUNet,
}


def count_fused_calls(monkeypatch):
    """A list that gets the mode of each call of the fused operator from a module."""
    calls, operator = [], functional.run
    names = ("resample", "training", "momentum", "eps", "relu")

    def counted(tensors, mean, var, options, *mode, **tracked):
        calls.append(dict(zip(names, mode, strict=True)))
        return operator(tensors, mean, var, options, *mode, **tracked)

    monkeypatch.setattr(functional, "run", counted)
    return calls


def train_steps(model, batches, lr=0.01):
    """SGD on a fixed linear loss per batch; yields the output and the gradient of every input."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for batch in batches:
        inputs = [x.clone().requires_grad_() for x in batch]
        y = model(*inputs)
        weights = torch.arange(y.numel(), dtype=y.dtype).sin().view_as(y)
        optimizer.zero_grad()
        (y * weights).sum().backward()
        optimizer.step()
        yield y, *(x.grad for x in inputs)
