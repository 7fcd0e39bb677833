"""DeepLabV3: a dilated ResNet, pooling at several rates, and a head; torchvision's network."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorseg.models.pretrained import backbone_of, load_pretrained, read_pretrained
from colorseg.models.resnet import RESNETS, Backbone
from colorseg.models.weights import StoredWeights, load_weights, metadata_of
from colorseg.nn import fuse
from colorseg.ops._registration import memory_format

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}  # of the dilated branches, by output stride
PUBLISHED_STRIDE = 8  # of torchvision's files, which do not say so
CHANNELS = 256  # of every branch


def deeplabv3(
    backbone: str = "resnet50",
    num_classes: int = 21,
    *,
    output_stride: int | None = None,
    aux: bool = False,
    weights: str | Path | None = None,
) -> "DeepLabV3":
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) with fused blocks.

    Parameters have torchvision's names, shapes, order and initialisation, and the network computes
    what ``torchvision.models.segmentation.deeplabv3_resnet50`` and ``..._resnet101`` do.  ResNet-18
    and 34, which torchvision does not dilate, are dilated by the rule of the deeper ones.

    Args:
        backbone: "resnet18", "resnet34", "resnet50" or "resnet101".
        num_classes: channels of the result.
        output_stride: 8 (rates 12, 24, 36) or 16 (rates 6, 12, 18); None for that of the weights,
            8 where they do not say.
        aux: whether there is a second head, on layer3, whose logits help to train.
        weights: None for random ones; "coco" for torchvision's, trained on COCO with the 21 classes
            of Pascal VOC (resnet50 and resnet101; 160 and 233 MB are downloaded once, with
            checksum); or the path of a .safetensors or .pth file.  Where its classes are of another
            number, the last layer (and that of aux) stays random, which is logged.

    Returns:
        The network in training mode; ``classifier[4]`` is the last layer.

    Raises:
        ValueError: an argument is not one of those above, or the weights do not fit.
        FileNotFoundError, OSError: there is no such file, or the download failed.
    """
    if backbone not in RESNETS:
        raise ValueError(f"backbone must be one of {', '.join(RESNETS)}, got {backbone!r}")
    if output_stride is not None and output_stride not in RATES:
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive int, got {num_classes!r}")
    stored = None if weights is None else read_pretrained(weights, backbone)
    stride = _chosen_stride(output_stride, stored)
    model = DeepLabV3(backbone, num_classes, stride, aux)
    if stored is not None:
        load_pretrained(model, stored)
    # the fused backbone runs in this layout, and need not convert the weights at every step
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fuse(model)


def _chosen_stride(given: int | None, stored: StoredWeights | None) -> int:
    """That of the weights' file, if it says so: their dilations would not fit another."""
    if stored is None or stored.output_stride is None:
        return given or PUBLISHED_STRIDE
    fixed = stored.output_stride
    if fixed not in RATES:
        raise ValueError(f"{stored.path} names output_stride={fixed}, which is neither 8 nor 16")
    if given not in (None, fixed):
        raise ValueError(
            f"{stored.path} holds weights for output_stride={fixed}, but output_stride={given} was "
            "passed; leave it out"
        )
    return fixed


def segments(weights: str | Path) -> bool:
    """Whether a weights file says that it is of a DeepLabV3."""
    return metadata_of(weights).get("network") == DeepLabV3.__name__


def load_segmenter(weights: str | Path) -> "DeepLabV3":
    """The DeepLabV3 of a weights file as ``colorseg.training.fit`` writes them, in eval mode.

    Its ``classes`` are the names that the file gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another network.
    """
    stored = load_weights(weights, "DeepLabV3")
    facts = metadata_of(weights)
    backbone = backbone_of(stored)
    classes = len(stored.tensors["classifier.4.bias"])
    aux = "aux_classifier.4.bias" in stored.tensors
    model = deeplabv3(backbone, classes, aux=aux, weights=weights).eval()
    if "classes" in facts:
        model.classes = tuple(json.loads(facts["classes"]))
    return model


class DeepLabV3(nn.Module):
    """The network that :func:`deeplabv3` makes; arguments are explained there.

    Shape:
        (N, 3, H, W) -> {"out": (N, num_classes, H, W), "aux": the same, if there is a second head}.
    """

    def __init__(self, backbone: str, num_classes: int, output_stride: int, aux: bool) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.classes: tuple[str, ...] | None = None  # names, where a weights file says so
        architecture = RESNETS[backbone]
        layers = {"layer4": "out"} | ({"layer3": "aux"} if aux else {})
        self.backbone = Backbone(backbone, output_stride, layers)
        self.classifier = deeplab_head(architecture.channels(4), num_classes, RATES[output_stride])
        self.aux_classifier = fcn_head(architecture.channels(3), num_classes) if aux else None

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Logits of images (N, 3, H, W), at their size and in their layout."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"DeepLabV3 takes images (N, 3, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(
                f"DeepLabV3 takes floating-point images, got {x.dtype}; divide bytes by 255, then "
                "subtract ImageNet's mean and divide by its deviation"
            )
        features = self.backbone(x)
        heads: Any = {"out": self.classifier, "aux": self.aux_classifier}
        results: OrderedDict[str, Tensor] = OrderedDict()
        for name, head in heads.items():
            if head is not None:
                logits = head(features[name]).contiguous(memory_format=memory_format(x))
                results[name] = F.interpolate(
                    logits, size=x.shape[-2:], mode="bilinear", align_corners=False
                )
        return results


def deeplab_head(in_channels: int, num_classes: int, rates: tuple[int, ...]) -> nn.Sequential:
    """ASPP, a 3x3 convolution, and the last layer, at index 4."""
    return nn.Sequential(
        ASPP(in_channels, rates),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, num_classes, 1),
    )


def fcn_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """The second head: a 3x3 convolution, dropout, and the last layer, at index 4."""
    channels = in_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(channels, num_classes, 1),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: branches at several rates and the mean, side by side.

    Args:
        in_channels: of the map.
        rates: dilations of the 3x3 branches.

    Shape:
        (N, in_channels, H, W) -> (N, 256, H, W).
    """

    def __init__(self, in_channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        branches = [_branch(in_channels, kernel_size=1)]
        branches += [_branch(in_channels, kernel_size=3, padding=r, dilation=r) for r in rates]
        self.convs = nn.ModuleList([*branches, ImagePooling(in_channels)])
        self.project = _branch(len(self.convs) * CHANNELS, kernel_size=1)
        self.project.append(nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Result of a map; ValueError for a batch of one in training."""
        norm: Any = self.convs[-1]
        if x.shape[0] == 1 and norm[2].training:
            raise ValueError(
                "DeepLabV3 cannot be trained on a batch of one: its ASPP pools each image to one "
                "value per channel, which has no variance for batch norm; use larger batches "
                "(drop_last=True of a DataLoader), model.eval(), or colorseg.freeze on this part"
            )
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


def _branch(in_channels: int, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, CHANNELS, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS), nn.ReLU())


class ImagePooling(nn.Sequential):
    """The mean of the map through a 1x1 convolution, everywhere: what the image is of."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_branch(in_channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256, H, W) of a map (N, in_channels, H, W)."""
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
