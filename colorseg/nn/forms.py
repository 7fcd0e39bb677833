"""Modules of ResNet and DeepLabV3 as torchvision writes them, recognised by what they compute.

A form has the children's names, the forward as it is ``written``, and a fused one.  A module is of
a form if its own forward, traced with torch.fx, is the written one, operation by operation.
"""

from collections import OrderedDict
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorseg.nn.functional import conv_bn_relu, one_by_one, why_not_readable
from colorseg.nn.runs import Run, find_run
from colorseg.nn.tracing import operations
from colorseg.nn.twins import twin
from colorseg.ops._registration import memory_format


class Form:
    """Mixed in front of the class of a module of that form."""

    plain_class: type[nn.Module]
    names: ClassVar[tuple[str, ...]]  # of children it must have

    @classmethod
    def may_be(cls, module: nn.Module) -> bool:
        """Whether it is worth tracing."""
        return set(cls.names) <= module._modules.keys()

    def activated(
        self: Any,
        conv: nn.Module,
        bn: nn.Module,
        x: Tensor,
        residual: Tensor | None = None,
        overwrites: bool = False,
    ) -> Tensor:
        """``relu(bn(conv(x)) + residual)``; the ReLU runs itself where somebody watches it.

        ``overwrites``: the residual's memory may be taken for it.
        """
        relu = self.relu
        stock = type(relu) is nn.ReLU and why_not_readable(relu) is None and not one_by_one(x)
        if getattr(conv, "folded", False):  # the batch norm too, by optimize_for_inference
            y = conv(x, residual, stock, overwrites)
        else:
            y = conv_bn_relu(conv, bn, x, relu=stock, residual=residual)
        return y if stock else relu(y)

    def shortcut(self: Any, x: Tensor) -> Tensor:
        """What a residual block adds."""
        return x if self.downsample is None else self.downsample(x)

    def ended(
        self: Any, conv: nn.Module, bn: nn.Module, y: Tensor, x: Tensor, unseen: bool | None
    ) -> Tensor:
        """The result of a residual block of ``x``, whose last convolution reads ``y``.

        ``unseen``: nobody else has ``x``; None where somebody may watch the block.
        """
        added = self.shortcut(x)
        if added is not x and unseen is not None:  # a folded convolution's result is its own
            unseen = getattr(next(self.downsample.children(), None), "folded", False)
        return self.activated(conv, bn, y, added, bool(unseen))


class BasicBlock(Form):
    """Two convolutions of ResNet-18 and 34."""

    names = ("conv1", "bn1", "conv2", "bn2", "relu")

    @classmethod
    def may_be(cls, module: nn.Module) -> bool:
        """Whether it is worth tracing."""
        return super().may_be(module) and "conv3" not in module._modules

    def written(self: Any, x: Tensor) -> Tensor:
        """The plain forward."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    def forward(self: Any, x: Tensor, unseen: bool | None = None) -> Tensor:
        """Result of a map (N, C, H, W); ``unseen`` is for a :class:`colorseg.nn.stage.Stage`."""
        y = self.activated(self.conv1, self.bn1, x)
        return self.ended(self.conv2, self.bn2, y, x, unseen)


class Bottleneck(Form):
    """Three convolutions of ResNet-50 and deeper."""

    names = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu")

    def written(self: Any, x: Tensor) -> Tensor:
        """The plain forward."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))

    def forward(self: Any, x: Tensor, unseen: bool | None = None) -> Tensor:
        """Result of a map (N, C, H, W); ``unseen`` is for a :class:`colorseg.nn.stage.Stage`."""
        y = self.activated(self.conv1, self.bn1, x)
        y = self.activated(self.conv2, self.bn2, y)
        return self.ended(self.conv3, self.bn3, y, x, unseen)


def channels_last(x: Tensor) -> Tensor:
    """The layout in which ATen's large convolutions are fastest; results keep it to the end."""
    return x.contiguous(memory_format=torch.channels_last)


_STEM = ("conv1", "bn1", "relu")
_LAYERS = ("maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNet(Form):
    """The classifier: its stem is fused here, its blocks by themselves."""

    names = (*_STEM, *_LAYERS, "avgpool", "fc")

    def written(self: Any, x: Tensor) -> Tensor:
        """The plain forward."""
        return self.rest(self.relu(self.bn1(self.conv1(x))))

    def forward(self: Any, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        return self.rest(self.activated(self.conv1, self.bn1, channels_last(x)))

    def rest(self: Any, x: Tensor) -> Tensor:
        """What follows the stem."""
        for name in _LAYERS:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Backbone(Form):
    """A ResNet without its head, as a ModuleDict that returns the results of some of its layers."""

    names = (*_STEM, *_LAYERS)

    @classmethod
    def may_be(cls, module: nn.Module) -> bool:
        """Whether it is worth tracing."""
        listed = isinstance(module, nn.ModuleDict) and hasattr(module, "return_layers")
        return listed and tuple(module._modules) == cls.names

    def written(self: Any, x: Tensor) -> OrderedDict[str, Tensor]:
        """The plain forward."""
        return self.rest(self.relu(self.bn1(self.conv1(x))))

    def forward(self: Any, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps that ``return_layers`` names, in channels_last."""
        return self.rest(self.activated(self.conv1, self.bn1, channels_last(x)))

    def rest(self: Any, x: Tensor) -> OrderedDict[str, Tensor]:
        """What follows the stem, whose results nobody may ask for."""
        results: OrderedDict[str, Tensor] = OrderedDict()
        for name in _LAYERS:
            x = self[name](x)
            if name in self.return_layers:
                results[self.return_layers[name]] = x
        return results


class ImagePooling(Form):
    """The pooled branch of ASPP: pool, convolution, batch norm, ReLU, back to the size of x."""

    names = ()

    @classmethod
    def may_be(cls, module: nn.Module) -> bool:
        """Whether it is worth tracing."""
        kinds = (nn.AdaptiveAvgPool2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
        children = list(module._modules.values())
        fits = len(children) == len(kinds) and all(map(isinstance, children, kinds))
        return isinstance(module, nn.Sequential) and fits

    def written(self: Any, x: Tensor) -> Tensor:
        """The plain forward."""
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self: Any, x: Tensor) -> Tensor:
        """(N, C_out, H, W) of a map (N, C, H, W)."""
        pool, *modules = self._modules.values()
        run = find_run(modules, 0)
        if not isinstance(run, Run) or run.length != len(modules) or one_by_one(x):
            return self.written(x)
        y = conv_bn_relu(run.conv, run.bn, pool(x), relu=run.relu)
        if y.shape[-2:] == (1, 1):  # the sum of its gradient needs no atomics, as interpolation's
            return y.expand(-1, -1, *x.shape[-2:]).contiguous(memory_format=memory_format(x))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


FORMS: tuple[type[Form], ...] = (BasicBlock, Bottleneck, ResNet, Backbone, ImagePooling)


def form_class(module: nn.Module) -> type[nn.Module] | None:
    """The fused twin of a module's class if it computes what one of the FORMS does, else None."""
    if isinstance(module, Form):
        return None
    own = None
    for form in FORMS:
        if form.may_be(module):
            own = own or operations(module, type(module), "forward")
            fused = twin(type(module), form)
            if own is not None and own == operations(module, fused, "written"):
                return fused
    return None
