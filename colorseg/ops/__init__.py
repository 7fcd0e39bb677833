"""The fused operators, functional; ``colorseg.reference`` has the same in plain torch."""

from colorseg._extension import load

load()  # registers the schemas that the modules below give fake kernels and autograd

from colorseg.ops import _flops  # noqa: E402, F401
from colorseg.ops.color_cross_entropy import color_cross_entropy  # noqa: E402
from colorseg.ops.conv2d import conv2d  # noqa: E402
from colorseg.ops.conv_bn_relu import conv_bn_relu  # noqa: E402
from colorseg.ops.nearest_color import nearest_color  # noqa: E402
from colorseg.ops.soft_iou_loss import soft_iou_loss  # noqa: E402

__all__ = ["color_cross_entropy", "conv2d", "conv_bn_relu", "nearest_color", "soft_iou_loss"]
